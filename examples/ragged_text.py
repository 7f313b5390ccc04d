"""Train on texts of different lengths: a collate function pads them, and the model masks what is padded.

A padded batch is where examples mix: a mean over padded positions would let the longest text of a batch change the
gradients of all others. dpcomp tries model and `collate_fn` on short and long texts before anything is charged, and
holds rows to examples that were collated alone while it trains. `main` also shows the refusal.
"""

import torch
from own_server import ledger_and_server
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import dpcomp as dp
from dpcomp.training.pytorch import FederatedClient, make_private

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Reader(nn.Module):
    """Letters and pairs of letters, their masked mean, and two classes."""

    def __init__(self, masked=True):
        super().__init__()
        self.masked, self.letters = masked, nn.Embedding(len(LETTERS) + 1, 16)
        self.pairs, self.out = nn.Linear(32, 16), nn.Linear(16, 2)

    def forward(self, letters, mask):
        x = self.letters(letters)
        x = torch.tanh(self.pairs(torch.cat([x[:, :-1], x[:, 1:]], -1)))
        if not self.masked:
            return self.out(x.mean(1))  # over padding too: a text's row depends on the longest text beside it
        both = (mask[:, :-1] & mask[:, 1:])[..., None]
        return self.out((x * both).sum(1) / both.sum(1))


def words(count):
    """Words of 3 to 12 letters of two languages, which like other letters to follow a letter."""
    following = torch.rand(2, len(LETTERS), len(LETTERS)) ** 6
    made = []
    for number in range(count):
        letters = [int(torch.randint(len(LETTERS), ()))]
        for _ in range(int(torch.randint(2, 12, ()))):
            letters.append(int(torch.multinomial(following[number % 2, letters[-1]], 1)))
        made.append((torch.tensor(letters) + 1, number % 2))
    return made


def padded(some):
    """Pad words with zeros; the mask says which letters are real. The labels come last."""
    letters = pad_sequence([word for word, _ in some], batch_first=True)
    return letters, letters > 0, torch.tensor([label for _, label in some])


def private(network, dataset):
    pipeline = dp.Pipeline(
        sampling=dp.Poisson(0.05),
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
    )
    adam, loss = torch.optim.Adam(network.parameters(), lr=0.02), nn.CrossEntropyLoss()
    return make_private(network, adam, dataset, pipeline, loss=loss, expected_batch_size=100, collate_fn=padded)


def main():
    torch.manual_seed(0)
    everything = words(2500)
    dataset, unseen = everything[:2000], padded(everything[2000:])
    try:
        private(Reader(masked=False), dataset)
    except dp.NotPrivate as refusal:
        print("without a mask:", refusal)

    model, optimizer, loader = private(Reader(), dataset)
    ledger, send = ledger_and_server(optimizer, dp.Budget(epsilon=8.0, delta=1e-5))
    client = FederatedClient(optimizer, ledger, send, client=0, seed=dp.PublicSeed(0), folder=None)
    for _ in client.rounds(8, steps=len(loader)):
        model.train()
        for letters, mask, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(letters, mask), labels).backward()
            optimizer.step()
    model.eval()
    letters, mask, labels = unseen
    with torch.no_grad():
        print(f"accuracy: {float((model(letters, mask).argmax(1) == labels).float().mean()):.2f}")
    print(ledger.guarantee(1e-5))


if __name__ == "__main__":
    main()
