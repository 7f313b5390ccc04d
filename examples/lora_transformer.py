"""Train LoRA adapters of a small transformer privately: what is frozen moves nothing and costs nothing.

The transformer reads padded texts under attention masks. It was trained on public texts; its adapters (Hu et al. 2021,
"LoRA: Low-Rank Adaptation of Large Language Models", section 4.1) and its head are trained on private ones.
"""

import torch
from own_server import ledger_and_server
from torch import nn
from torch.nn import functional

import dpcomp as dp
from dpcomp.training.pytorch import FederatedClient, make_private

VOCABULARY, LENGTH, WIDTH, HEADS, RANK = 40, 16, 32, 4, 4


class Adapted(nn.Module):
    """A frozen linear layer, plus a product of two thin ones that begins at zero."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Transformer(nn.Module):
    """One block of attention, the mean over what is not padded, and a head for two classes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mixed, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens, mask):
        x = self.embedding(tokens)
        q, k, v = (
            part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.queries, self.keys, self.values)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.norm(x + self.mixed(seen.transpose(1, 2).flatten(2)))
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def texts(count, first):
    """Texts of 4 to 16 tokens; the label says whether most tokens are among the 20 from `first` on."""
    tokens = torch.randint(VOCABULARY, (count, LENGTH))
    mask = torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (count, 1))
    among = ((tokens - first) % VOCABULARY < VOCABULARY // 2) & mask
    labels = (2 * among.sum(1) > mask.sum(1)).long()
    return [{"tokens": t, "mask": m, "labels": y} for t, m, y in zip(tokens, mask, labels, strict=True)]


def accuracy(network, some):
    tokens, mask, labels = (torch.stack([text[name] for text in some]) for name in ("tokens", "mask", "labels"))
    with torch.no_grad():
        return float((network.eval()(tokens, mask).argmax(1) == labels).float().mean())


def pretrain(network, dataset, loss):
    adam = torch.optim.Adam(network.parameters(), lr=0.01)
    for batch in torch.utils.data.DataLoader(dataset, batch_size=50):
        adam.zero_grad()
        loss(network(batch["tokens"], batch["mask"]), batch["labels"]).backward()
        adam.step()


def private(network, dataset, loss):
    """Freeze all but adapters and head, and make their training private."""
    network.requires_grad_(False)
    for name in ("queries", "values", "mixed"):
        setattr(network, name, Adapted(getattr(network, name)))
    network.head.requires_grad_(True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    pipeline = dp.Pipeline(
        sampling=dp.Poisson(0.05),
        mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
        codec=dp.Codec(sparsify=dp.TopK(0.2), quantize=dp.Uniform(4)),
    )
    return make_private(
        network, torch.optim.Adam(trained, lr=0.02), dataset, pipeline, loss=loss, expected_batch_size=100
    )


def main():
    torch.manual_seed(0)
    public, private_texts, unseen = texts(2000, first=0), texts(2000, first=6), texts(500, first=6)
    network, loss = Transformer(), nn.CrossEntropyLoss()
    pretrain(network, public, loss)
    print(f"before: {accuracy(network, unseen):.2f} on private texts")

    model, optimizer, loader = private(network, private_texts, loss)
    ledger, send = ledger_and_server(optimizer, dp.Budget(epsilon=8.0, delta=1e-5))
    client = FederatedClient(optimizer, ledger, send, client=0, seed=dp.PublicSeed(0), folder=None)
    model.train()
    for _ in client.rounds(8, steps=len(loader)):
        for batch in loader:
            optimizer.zero_grad()
            loss(model(batch["tokens"], batch["mask"]), batch["labels"]).backward()
            optimizer.step()
    print(f"trained: {optimizer.layout.size} of {sum(p.numel() for p in network.parameters())} parameters")
    print(f"after: {accuracy(network, unseen):.2f} on private texts")
    print(ledger.guarantee(1e-5))


if __name__ == "__main__":
    main()
