"""The model, the data of a node, and how both are trained and tested."""

import torch
from torch import nn
from torch.utils.data import DataLoader


class Net(nn.Module):
    """A small CNN for images of 8 × 8."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(6 * 3 * 3, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv(x)))
        return self.output(torch.relu(self.hidden(x.flatten(1))))


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Load the part of a node, and hold a fifth of it out."""
    draw = torch.Generator().manual_seed(partition_id)
    labels = torch.randint(10, (100,), generator=draw)
    images = torch.rand(100, 1, 8, 8, generator=draw) + labels[:, None, None, None] / 10
    rows = [{"img": image, "label": label} for image, label in zip(images, labels, strict=True)]
    trainloader = DataLoader(rows[:80], batch_size=batch_size, shuffle=True)
    return trainloader, DataLoader(rows[80:], batch_size=batch_size)


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    net.to(device)
    criterion = torch.nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            images = batch["img"].to(device)
            labels = batch["label"].to(device)
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Return loss and accuracy on a test set."""
    net.to(device)
    criterion = torch.nn.CrossEntropyLoss()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for batch in testloader:
            images = batch["img"].to(device)
            labels = batch["label"].to(device)
            outputs = net(images)
            loss += criterion(outputs, labels).item()
            correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(testloader), correct / len(testloader.dataset)
