"""A server and nodes of Flower in one process: a grid that hands messages to apps, and may lose, keep or alter them."""

import uuid

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

import dpcomp as dp
from dpcomp.adapters.flower import PrivateClientApp, PrivateStrategy, prepare_node
from dpcomp.adapters.flower.records import arrays_of
from dpcomp.terms import ClientPolicy, FederationTerms
from dpcomp.training.pytorch import Isolated, make_private
from dpcomp.training.pytorch.rows.parameters import layout_of, read

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # of the ServerApp
STEPS, RATE = 2, 0.1
PIPELINE = dp.Pipeline(
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(sparsify=dp.TopK(0.5), quantize=dp.Uniform(4)),
)
TRUSTED = dp.Pipeline(
    unit="client",
    trust="server",
    sampling=dp.Poisson(0.5),
    mechanism=(dp.Clip(1.0), dp.Gaussian(1.0)),
    codec=dp.Codec(quantize=dp.Uniform(4)),
)
GENEROUS = ClientPolicy(budget=dp.Budget(1000.0, 1e-5), trust=("nobody", "server"))
LOSS = nn.CrossEntropyLoss()
NODES = (2**63 + 11, 2**64 - 5, 17)  # ids that SQLite's integers hold, and that they don't


def network():
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def terms_of(pipeline=PIPELINE, **others):
    module = network()
    steps = STEPS if pipeline.unit == "example" else 1
    values = {"rounds": 4, "steps": steps, "clients": 3, "round_seconds": 5.0, "learning_rate": RATE}
    return FederationTerms.agree(pipeline, layout_of(module), read(module), **(values | others))


def data_of(number):
    draw = torch.Generator().manual_seed(number)
    features = torch.randn(30, 4, generator=draw)
    return torch.utils.data.TensorDataset(features, (features[:, 0] > 0).long())


def app_of(terms, number=0, before_begin=lambda: None, after=lambda: None, epochs=1, **others):
    """A client app, as a process that Flower starts for one message makes it."""
    app = PrivateClientApp(terms, **others)

    @app.train()
    def train(msg, context):
        module = network()
        inner = torch.optim.SGD(module.parameters(), lr=RATE)
        before_begin()
        if terms.pipeline.unit == "client":
            app.begin(module)
            inputs, targets = data_of(number).tensors
            LOSS(module(inputs), targets).backward()
            inner.step()
        else:
            model, optimizer, loader = make_private(
                module,
                inner,
                data_of(number),
                terms.pipeline,
                loss=LOSS,
                expected_batch_size=15,
                steps=STEPS,
                engine=Isolated(),
            )
            app.begin(optimizer)
            for _ in range(epochs):
                for inputs, targets in loader:
                    optimizer.zero_grad()
                    LOSS(model(inputs), targets).backward()
                    optimizer.step()
        after()
        return Message(RecordDict({"metrics": metrics(train_loss=0.5)}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg, context):
        module = network()
        module.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        return Message(RecordDict({"metrics": metrics(bias=float(module.bias[0].detach()))}), reply_to=msg)

    return app


def metrics(**values):
    from flwr.app import MetricRecord

    return MetricRecord(values)


def over_the_wire(message):
    """The message as the other end reads it from Flower's objects."""
    contents = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
    read = inflate_object_from_contents(message.object_id, contents)
    read.metadata.__dict__["_message_id"] = message.metadata.message_id
    return read


class InProcess(Grid):
    """A grid whose nodes answer at once: `apps` by node id, each made anew for every message.

    `fault(node, message, answer)` returns the replies that come back: none, late ones or others. `late` are delivered
    when the server pulls the next time.
    """

    def __init__(self, folder, terms, nodes=NODES, policy=GENEROUS, **app_arguments):
        self.terms, self.folder, self.connected = terms, folder, list(nodes)
        self.make = lambda node: app_of(terms, node % 1000, **app_arguments)
        self.fault = lambda node, message, answer: [answer()]
        self.replies, self.sent, self.received = {}, [], []
        for node in nodes:
            if not (folder / str(node)).exists():
                prepare_node(folder / str(node), policy)

    run = property(lambda self: None)

    def set_run(self, run): ...

    def create_message(self, *arguments, **others):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.connected)

    def push_messages(self, messages):
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = message.object_id + uuid.uuid4().hex
            arrived = over_the_wire(message)
            self.sent.append((node, arrived))
            for reply in self.fault(node, arrived, lambda n=node, m=arrived: self.answer(n, m)):
                self.replies[reply.metadata.reply_to_message_id] = over_the_wire(reply)
        return [message.metadata.message_id for message in messages]

    def answer(self, node, message):
        """What the node replies; its process ends after it."""
        context = Context(1, node, {"dpcomp-folder": str(self.folder / str(node))}, RecordDict(), {})
        reply = self.make(node)(message, context)
        self.received.append((node, reply))
        return reply

    def pull_messages(self, message_ids):
        return [self.replies.pop(name) for name in list(message_ids) if name in self.replies]


def played(grid, folder, rounds=None, **others):
    """The strategy after its rounds, and its result."""
    strategy = PrivateStrategy(grid.terms, folder=folder, poll_seconds=0.01, **others)
    module = network()
    result = strategy.start(grid, arrays_of(layout_of(module), read(module)), rounds)
    return strategy, result
