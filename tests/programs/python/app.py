import hashlib
import os
import time

from flask import Flask, Response, jsonify, request

app = Flask(__name__)


@app.get("/")
def index():
    return jsonify(instance=os.environ["LONGSHORE_INSTANCE"], user=os.getuid(), greeting=os.environ["GREETING"])


@app.post("/digest")
def digest():
    hasher = hashlib.sha256()
    while chunk := request.stream.read(1 << 16):
        hasher.update(chunk)
    return hasher.hexdigest()


@app.get("/stream")
def stream():
    """The second line waits until somebody asks for /go."""

    def lines():
        yield "first\n"
        while not os.path.exists("/tmp/go"):
            time.sleep(0.01)
        yield "second\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/go")
def go():
    open("/tmp/go", "w").close()
    return "gone"
