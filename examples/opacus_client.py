# Copyright (c) Meta Platforms, Inc. and affiliates.
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0. Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""Take part in a federation with the script opacus_mnist.py, which differs from this one in 15 lines.

Run it in an empty folder, kill it at any moment, and run it again: it goes on from the folder, and stops at its budget.
"""

import argparse

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from own_server import ledger_and_server
from sklearn.datasets import load_digits

import dpcomp as dp
from dpcomp.training.pytorch import FederatedClient, make_private


class SampleConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 8, 2, padding=3)
        self.conv2 = nn.Conv2d(16, 32, 4, 2)
        self.fc1 = nn.Linear(32 * 4 * 4, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        # x of shape [B, 1, 28, 28]
        x = F.relu(self.conv1(x))  # -> [B, 16, 14, 14]
        x = F.max_pool2d(x, 2, 1)  # -> [B, 16, 13, 13]
        x = F.relu(self.conv2(x))  # -> [B, 32, 5, 5]
        x = F.max_pool2d(x, 2, 1)  # -> [B, 32, 4, 4]
        x = x.view(-1, 32 * 4 * 4)  # -> [B, 512]
        x = F.relu(self.fc1(x))  # -> [B, 32]
        x = self.fc2(x)  # -> [B, 10]
        return x


def train(args, model, device, train_loader, optimizer, privacy_engine, epoch):
    model.train()
    criterion = nn.CrossEntropyLoss()
    losses = []
    for _batch_idx, (data, target) in enumerate(train_loader):
        data, target = data.to(device), target.to(device)
        optimizer.zero_grad()
        output = model(data)
        loss = criterion(output, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    epsilon = privacy_engine.ledger.guarantee(args.delta).epsilon
    print(f"Train Epoch: {epoch} \tLoss: {np.mean(losses):.6f} (ε = {epsilon:.2f}, δ = {args.delta})", flush=True)


def test(model, device, test_loader):
    model.eval()
    correct = 0
    with torch.no_grad():
        for data, target in test_loader:
            data, target = data.to(device), target.to(device)
            correct += model(data).argmax(dim=1).eq(target).sum().item()

    print(f"Test set: Accuracy: {correct}/{len(test_loader.dataset)} ({100 * correct / len(test_loader.dataset):.2f}%)")


def digits(train):
    images, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = F.interpolate(images.float().view(-1, 1, 8, 8) / 8 - 1, size=(28, 28), mode="bilinear")
    chosen = (torch.arange(len(images)) % 5 != 0) == train
    return torch.utils.data.TensorDataset(images[chosen], labels[chosen])


def main():
    parser = argparse.ArgumentParser(description="Opacus MNIST Example")
    parser.add_argument("-b", "--batch-size", type=int, default=64, help="Batch size")
    parser.add_argument("-n", "--epochs", type=int, default=10, help="number of epochs to train")
    parser.add_argument("--lr", type=float, default=0.5, help="learning rate")
    parser.add_argument("--sigma", type=float, default=1.0, help="Noise multiplier")
    parser.add_argument("-c", "--max-per-sample-grad_norm", type=float, default=1.0, help="Clip gradients to this norm")
    parser.add_argument("--delta", type=float, default=1e-5, help="Target delta")
    parser.add_argument("--device", type=str, default="cpu", help="GPU ID for this process")
    args = parser.parse_args()
    device = torch.device(args.device)

    train_loader = torch.utils.data.DataLoader(digits(train=True), batch_size=args.batch_size)
    test_loader = torch.utils.data.DataLoader(digits(train=False), batch_size=1024)
    torch.manual_seed(0)  # the first weights are the same at all ends
    model = SampleConvNet().to(device)

    optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0)
    stages = (dp.Clip(args.max_per_sample_grad_norm), dp.Gaussian(args.sigma))
    codec = dp.Codec(sparsify=dp.TopK(0.1), quantize=dp.Uniform(4))
    model, optimizer, train_loader = make_private(
        module=model,
        optimizer=optimizer,
        dataset=train_loader.dataset,
        pipeline=dp.Pipeline(sampling=dp.Poisson(1 / len(train_loader)), mechanism=stages, codec=codec),
        loss=nn.CrossEntropyLoss(),
        expected_batch_size=args.batch_size,
    )
    ledger, send = ledger_and_server(optimizer, dp.Budget(epsilon=4.0, delta=args.delta), folder=".")
    privacy_engine = FederatedClient(optimizer, ledger, send, client=0, seed=dp.PublicSeed(0), folder="client")

    for epoch in privacy_engine.rounds(args.epochs, steps=len(train_loader)):
        train(args, model, device, train_loader, optimizer, privacy_engine, epoch)
    test(model, device, test_loader)


if __name__ == "__main__":
    main()
