"""Federations over HTTP: an ASGI app for the server, and a transport for clients (`pip install 'dpcomp[http]'`)."""

from dpcomp.core.extras import require

require("http", "starlette", "uvicorn", "httpx")

# ruff: noqa: E402  # what follows imports them
from dpcomp.adapters.http.app import FederationApp as FederationApp
from dpcomp.adapters.http.certificates import Tls as Tls
from dpcomp.adapters.http.certificates import fingerprint as fingerprint
from dpcomp.adapters.http.certificates import make_certificate as make_certificate
from dpcomp.adapters.http.folder import serve_folder as serve_folder
from dpcomp.adapters.http.folder import write_folder as write_folder
from dpcomp.adapters.http.limits import Limits as Limits
from dpcomp.adapters.http.rounds import RoundPolicy as RoundPolicy
from dpcomp.adapters.http.senders import Senders as Senders
from dpcomp.adapters.http.senders import new_token as new_token
from dpcomp.adapters.http.serving import serve as serve
from dpcomp.adapters.http.serving import serving as serving
from dpcomp.adapters.http.transport import HttpTransport as HttpTransport
from dpcomp.adapters.http.transport import RefusedByServer as RefusedByServer
