"""Calls the server through an ingress: client.py HOST:PORT AUTHORITY"""

import queue
import sys

import grpc

address, authority = sys.argv[1:]
channel = grpc.insecure_channel(address, options=[("grpc.default_authority", authority)])
say = channel.unary_unary("/test.Echo/Say")
hang = channel.unary_unary("/test.Echo/Hang")
count = channel.unary_stream("/test.Echo/Count")
chat = channel.stream_stream("/test.Echo/Chat")

assert say(b"hello", timeout=30) == b"hello"
large = b"x" * (3 << 20)
assert say(large, timeout=30) == large

try:
    say(b"fail", timeout=30)
    raise SystemExit("it should have failed")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "not now", error
    assert ("reason", "because") in error.trailing_metadata(), error

assert [int(number) for number in count(b"1000", timeout=30)] == list(range(1000))

# In turns: each answer comes before the next question.
questions = queue.Queue()
answers = chat(iter(questions.get, None), timeout=30)
for word in [b"one", b"two", b"three"]:
    questions.put(word)
    assert next(answers) == word.upper()
questions.put(None)
assert list(answers) == []

try:
    hang(b"", timeout=1)
    raise SystemExit("it should have run out of time")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
assert say(b"given up?", timeout=30) == b"True"

print(say(b"who", timeout=30).decode())
