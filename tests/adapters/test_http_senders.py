"""Who is known by what, and the file that says so."""

import stat

import pytest

import dpcomp as dp
from dpcomp.adapters.http import Senders, fingerprint, make_certificate, new_token
from tests.adapters.federation import certificates

DIGEST = "0" * 64


def test_a_list_survives_its_file_and_holds_no_secret(tmp_path):
    certificates(tmp_path, "client-7")
    tokens = [new_token(number) for number in (3, 12)]
    senders = Senders.of(tokens=tokens, certificates={7: tmp_path / "client-7.pem"})
    senders.write(tmp_path / "senders.toml")
    text = (tmp_path / "senders.toml").read_text()
    assert Senders.read(tmp_path / "senders.toml") == senders
    for token in tokens:
        assert token not in text + repr(senders)
        assert token.partition(".")[2] not in text
        assert senders.sender_of(f"bearer {token}", None) == int(token.partition(".")[0])
    assert repr(senders) == "Senders(2 by token, 1 by certificate)"


def test_a_request_shows_one_client(tmp_path):
    import ssl

    certificates(tmp_path, "client-7", "stranger")
    token = new_token(3)
    senders = Senders.of(tokens=[token], certificates={7: tmp_path / "client-7.pem"})
    der = {name: ssl.PEM_cert_to_DER_cert((tmp_path / f"{name}.pem").read_text()) for name in ("client-7", "stranger")}
    assert senders.sender_of(None, der["client-7"]) == 7
    for shown in (
        (None, None),
        (None, der["stranger"]),
        (None, b""),
        (f"Bearer {token}", der["client-7"]),
        (f"Bearer {token}", der["stranger"]),
        ("Bearer 7.", None),
        ("Bearer 7", None),
        ("", None),
        (f"Bearer {2**32 - 1}.x", None),
        (f"Bearer -1{token[1:]}", None),
        (f"Bearer  {token}", None),
    ):
        assert senders.sender_of(*shown) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tokens": {1: DIGEST, 2: DIGEST}}, "one digest for two clients"),
        ({"certificates": {1: DIGEST, 2: DIGEST}}, "one digest for two clients"),
        ({"tokens": {1: DIGEST}, "certificates": {1: "1" * 64}}, "a token and a certificate"),
        ({"tokens": {1: "secret"}}, "64 hexadecimal"),
        ({"tokens": {1: DIGEST[:-1] + "A"}}, "64 hexadecimal"),
    ],
)
def test_a_list_by_which_one_could_send_as_two_is_refused(given, why):
    with pytest.raises(dp.ConfigError, match=why):
        Senders(**given)


@pytest.mark.parametrize(
    "text", ["tokens = 3", "[token]", "[tokens]\nx = 'y'", "[tokens", f"[tokens]\n-1 = '{DIGEST}'"]
)
def test_a_file_that_is_no_list_is_refused(text, tmp_path):
    (tmp_path / "senders.toml").write_text(text)
    with pytest.raises(dp.ConfigError, match=r"senders\.toml"):
        Senders.read(tmp_path / "senders.toml")


def test_tokens_of_one_client_and_of_none_are_refused():
    token = new_token(3)
    for tokens in ([token, new_token(3)], ["secret"], ["3"], [f"{2**32 - 1}.secret"]):
        with pytest.raises(dp.ConfigError):
            Senders.of(tokens=tokens)


def test_a_key_is_read_by_its_owner_alone_and_never_overwritten(tmp_path):
    make_certificate(tmp_path / "a.pem", tmp_path / "a-key.pem", name="a")
    assert stat.S_IMODE((tmp_path / "a-key.pem").stat().st_mode) == 0o600
    before = fingerprint(tmp_path / "a.pem")
    with pytest.raises(FileExistsError):
        make_certificate(tmp_path / "a.pem", tmp_path / "a-key.pem", name="a")
    with pytest.raises(FileExistsError):
        make_certificate(tmp_path / "a.pem", tmp_path / "b-key.pem", name="a")
    assert fingerprint(tmp_path / "a.pem") == before
