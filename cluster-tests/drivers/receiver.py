"""A mail server and an HTTP listener that write down what they get.

Usage: receiver.py HOST DIR [CERT KEY]

DIR/ports says where they listen, as JSON; each message is a line of JSON in DIR/received. With a certificate there are also a mail
server that insists on STARTTLS and on a login (notify / secret), one that is encrypted from the beginning, and an HTTPS listener.
"""

import asyncio
import email
import email.policy
import json
import os
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from aiosmtpd.smtp import SMTP, AuthResult

HOST, DIR = sys.argv[1], sys.argv[2]
TLS = sys.argv[3:5]
LOCK = threading.Lock()


def received(kind, **what):
    with LOCK, open(os.path.join(DIR, "received"), "a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **what}) + "\n")


class Mail:
    def __init__(self, kind):
        self.kind = kind

    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        received(
            self.kind,
            sender=envelope.mail_from,
            to=envelope.rcpt_tos,
            subject=str(message["subject"]),
            text=message.get_content().replace("\r\n", "\n"),
            # aiosmtpd does not say so of a connection that was encrypted from the beginning.
            encrypted=self.kind == "tls" or session.ssl is not None,
            login=bool(session.authenticated),
        )
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    fine = (data.login, data.password) == (b"notify", b"secret")
    return AuthResult(success=fine, handled=fine)


class Web(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        refused = self.path == "/refuse"
        if not refused:
            received("http", path=self.path, headers=dict(self.headers), json=json.loads(body))
        self.send_response(503 if refused else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def listen_http(context=None):
    server = ThreadingHTTPServer((HOST, 0), Web)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


async def main():
    # Whoever clears up behind a cluster knows its processes by name and directory.
    os.chdir(DIR)
    with open("/proc/self/comm", "w", encoding="utf-8") as file:
        file.write("pgherd-receiver")
    loop = asyncio.get_running_loop()
    ports = {}

    async def listen_mail(kind, context=None, **options):
        factory = lambda: SMTP(Mail(kind), hostname="receiver", **options)
        server = await loop.create_server(factory, HOST, 0, ssl=context)
        ports[kind] = server.sockets[0].getsockname()[1]

    await listen_mail("mail")
    ports["http"] = listen_http()
    if TLS:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*TLS)
        login = {"authenticator": authenticate, "auth_required": True}
        await listen_mail("starttls", tls_context=context, require_starttls=True, **login)
        await listen_mail("tls", context=context, auth_require_tls=False, **login)
        ports["https"] = listen_http(context)
    part = os.path.join(DIR, "ports.new")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(ports, file)
    os.rename(part, os.path.join(DIR, "ports"))
    await asyncio.Event().wait()


asyncio.run(main())
