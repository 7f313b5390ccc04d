"""Certificates that are renewed: the federation goes on with the new ones, and old ones are refused before anything."""

import pytest

from dpcomp.adapters.http import FederationApp, RefusedByServer, RoundPolicy, Senders, serving
from tests.adapters.federation import PIPELINE, Client, certificates, server_of, tls_of, transport


def test_a_federation_goes_on_with_renewed_certificates(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        certificates(folder, "client")
    server = server_of(clients=1, folder=tmp_path / "server")

    def served(folder):
        senders = Senders.of(certificates={0: folder / "client.pem"})
        return serving(FederationApp(server, senders, RoundPolicy(updates=1)), tls=tls_of(folder, "client"))

    def sending(url, *, ca, own):
        pair = (own / "client.pem", own / "client-key.pem")
        return transport(url, certificate=pair, ca=ca / "server.pem", attempts=2)

    with served(old) as url, sending(url, ca=old, own=old) as send:
        client = Client(0, send)
        client.take_part(2)
    before = client.memory
    with served(new) as url:
        for ca, own, reason in ((old, new, "is not trusted"), (new, old, "certificate")):
            with sending(url, ca=ca, own=own) as client.send, pytest.raises(RefusedByServer, match=reason):
                client.train()
        assert client.memory == before
        with sending(url, ca=new, own=new) as client.send:
            client.take_part(4)
    assert client.memory.link == server.memory.link(0)
    assert client.memory.link.count == 4
    assert client.ledger.guarantee(1e-5).epsilon == PIPELINE.guarantee(4, 1e-5).epsilon
    server.close()
