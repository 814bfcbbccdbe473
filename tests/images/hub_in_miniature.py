"""What a notebook server asks of its Hub, in one process inside the container: its version, who a token is, OAuth."""

import http.server
import json

SCOPES = {"owners": ["access:servers!user=u"], "strangers": ["access:servers!user=v"]}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        token = self.headers.get("Authorization", "").split(" ")[-1]
        if self.path.endswith("/oauth2/token"):
            self.answer(200, {"access_token": "owners", "token_type": "Bearer"})
        elif not self.path.endswith("/user"):
            self.answer(200, {"version": "6.1.1"})
        elif token in SCOPES:
            name = "u" if token == "owners" else "v"
            self.answer(200, {"kind": "user", "name": name, "admin": False, "groups": [], "scopes": SCOPES[token]})
        else:
            self.answer(403, {"message": "no such token"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", 8081), Hub).serve_forever()
