"""Run a SuperLink and three SuperNodes as processes that talk TLS on this machine, and let them learn pictures.

They learn digits, or with `--fashion-mnist` clothes. With `--faults` a SuperNode is killed and restarted, another is
away for five rounds, and the ServerApp is killed and run again. With `--kills 50` so many kills come at random moments,
of nodes, of the ServerApp and of the SuperLink. Whatever is killed goes on from its folder.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import dpcomp as dp
from dpcomp.adapters.flower import prepare_node
from dpcomp.core.database.database import look_at_database
from dpcomp.federated.server.journal import KIND
from dpcomp.terms import ClientPolicy, FederationTerms

HERE, FOLDER = Path(__file__).parent, Path("flower-federation")
ROOT = HERE.parents[1]
DELTA, MEAN_SECONDS = 1e-5, 12.0
sys.path[:0] = [str(HERE), str(FOLDER / "app"), str(ROOT)]  # the app is copied there, and gets its terms
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

from loopback import Loopback  # noqa: E402


def prepare():
    """Make the app with its terms, and the folders of the nodes, once."""
    if FOLDER.exists():
        return
    shutil.copytree(HERE / "app", FOLDER / "app")
    from pictures_app import task

    task.agree()
    for node in range(task.CLIENTS):
        prepare_node(FOLDER / f"node-{node}", ClientPolicy(budget=dp.Budget(epsilon=16.0, delta=DELTA)))


def terms():
    return FederationTerms.read(FOLDER / "app" / "pictures_app" / "federation.toml")


def journal_of():
    return FOLDER / "server" / terms().run_id.hex() / "journal.db"


def round_now():
    """Return the round that is open: that of the last update that was accepted."""
    if not journal_of().exists():
        return 0
    with look_at_database(journal_of(), KIND) as connection:
        return connection.execute("SELECT COALESCE(MAX(version), 0) FROM accepted").fetchone()[0]


def faults():
    """The faults by round: what is done once that round has its first update."""
    return {
        3: lambda loopback: (loopback.kill("node-1", signal.SIGKILL), loopback.start_node(1)),
        6: lambda loopback: loopback.kill("node-2"),
        11: lambda loopback: loopback.start_node(2),
        14: lambda loopback: loopback.kill_server_app(),
    }


class Kills:
    """Kills at random moments, from which everything goes on."""

    def __init__(self, count):
        self.count, self.done, self.random, self.next = count, 0, random.Random(0), time.monotonic() + 60.0

    def maybe(self, loopback):
        """Kill something, if it is time."""
        if self.done == self.count or time.monotonic() < self.next:
            return
        victim = self.random.choice(["node-0", "node-1", "node-2", "ServerApp", "superlink"])
        if victim == "ServerApp":
            if not loopback.kill_server_app():
                return  # it is just being started
        else:
            if loopback.running[victim].poll() is not None:
                return  # it has ended by itself, and is started again soon
            loopback.kill(victim, signal.SIGKILL)
            loopback.start_link() if victim == "superlink" else loopback.start_node(int(victim[-1]))
        self.done += 1
        print(f"--- kill {self.done} of {self.count}: {victim}, in round {round_now() + 1}", flush=True)
        self.next = time.monotonic() + self.random.expovariate(1 / MEAN_SECONDS)


def main(options):
    prepare()
    due = faults() if options.faults else {}
    kills = Kills(options.kills)
    home = FOLDER.absolute()

    def node_config(node):
        return f'partition-id={node} dpcomp-folder="{home / f"node-{node}"}"'

    with Loopback(FOLDER, terms().clients, node_config) as loopback:
        loopback.wait_for_nodes()
        run = loopback.run(home / "app", server_folder=str(home / "server"))
        shown, asked, status = loopback.show(run), time.monotonic(), loopback.status(run)
        while status["status"] != "finished:completed":
            for number in [number for number in due if number <= round_now()]:
                print(f"--- a fault in round {number + 1}", flush=True)
                due.pop(number)(loopback)
            if status["status"].startswith("finished"):
                print("--- the ServerApp has ended, and is run again", flush=True)
                shown.kill()
                run = loopback.run(home / "app", server_folder=str(home / "server"))
                shown, status = loopback.show(run), loopback.status(run)
            kills.maybe(loopback)
            loopback.tend()
            time.sleep(1.0)
            if time.monotonic() > asked + 10.0:  # seldom, since Flower's command takes seconds of a core
                status, asked = loopback.status(run), time.monotonic()
        shown.wait(timeout=60)
        traffic = status["network-traffic"]
        print(f"Flower counts {traffic['inbound-bytes']:,} bytes from the nodes, {traffic['outbound-bytes']:,} to them")
    for node in range(terms().clients):
        print(f"node {node}:", str(dp.Ledger.read(FOLDER / f"node-{node}" / "ledger.db").guarantee(DELTA))[:90])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    parser = argparse.ArgumentParser(description="Run a federation of Flower on this machine.")
    parser.add_argument("--faults", action="store_true", help="kill some processes on the way")
    parser.add_argument("--kills", type=int, default=0, metavar="NUMBER", help="kill so many at random moments")
    parser.add_argument("--fashion-mnist", action="store_true", help="learn clothes instead of digits")
    given = parser.parse_args()
    if given.fashion_mnist:
        os.environ["TASK"] = "fashion_mnist"
    main(given)
