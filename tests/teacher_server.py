"""An OpenAI-compatible server that does as a script says, in a process of its own.

    python teacher_server.py SCRIPT.json     (prints its port, then serves until it is killed)

It speaks HTTP and the chat-completions protocol for real; what it says is made up from the question
it is asked: a question holds "row N:", a prompt to write the standard answer after "The note:".
The script, all of it optional:

    {"rows": {"3": ["wrong", "right"]},       what is said at each attempt, by temperature
     "first": {"4": ["500", "429:0.5"]},      what comes before that, once each, unpaid
     "models": ["teacher"], "key": "secret", "delay": 0.02, "barrier": 4,
     "checks": "always no", "usage": false, "unknown": ["seed"]}

GET /log is a list of all requests: row, purpose, seed, temperature, what was done, whether it was
paid (an HTTP 200), when it came, how many were open with it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEATS = [0.7, 0.9, 1.0]
SCRIPT: dict = {}
LOG: list[dict] = []
LOCK = threading.Lock()
STATE = {"open": 0, "connections": 0}


def stages(answer: str) -> str:
    return (
        "<SUMMARY>I will look closely.</SUMMARY>\n<CAPTION>There are some things.</CAPTION>\n"
        f"<REASONING>Counting them one by one leads to {answer}.</REASONING>\n"
        f"<CONCLUSION>{answer}</CONCLUSION>"
    )


def written(action: str, note: str) -> tuple[str | None, str, str | None]:
    """(content, finish_reason, refusal) of an action."""
    texts = {
        "right": stages(note),
        "wordy": stages(f"There seem to be {note} of them"),
        "wrong": stages("999"),
        "untagged": f"It is {note}.",
        "leak": stages(note).replace("Counting", "As the standard answer says, counting"),
        "preface": "Sure, here it is:\n" + stages(note).removesuffix("</CONCLUSION>"),
        "sorry": "I'm sorry, but I can't help with that.",
        "empty": "",
        "talk": "Q: What is there?\nA: A dog.\n\n**Q:** Where?\n**A:** By the car.",
        "once": "Q: Why is it there?\nA: It waits: the door is open.",
        "told": "A dog stands by a car.",
        "boxed": "The caption says that a dog stands by a car.",
    }
    if action == "cut":
        return stages(note)[:70], "length", None
    if action == "refuse":
        return None, "stop", "I will not."
    if action.startswith("says "):
        return stages(action.removeprefix("says ")), "stop", None
    return texts[action], "stop", None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body, **headers) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/log":
            with LOCK:
                return self.answer(200, {"log": LOG, **STATE})
        names = SCRIPT.get("models", ["teacher"])
        return self.answer(200, {"data": [{"id": name} for name in names]})

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # whoever asked was killed while asking
            self.close_connection = True
            return
        with LOCK:
            STATE["open"] += 1
            entry = {"came": time.monotonic(), "open": STATE["open"], "paid": False}
            LOG.append(entry)
        try:
            self.reply(json.loads(body), entry)
        except (BrokenPipeError, ConnectionResetError):
            entry["gone"] = True  # the asker; what was paid is paid
        finally:
            with LOCK:
                STATE["open"] -= 1

    def reply(self, asked: dict, entry: dict) -> None:
        if self.path != "/v1/chat/completions":
            return self.answer(404, {"error": {"message": f"no {self.path}"}})
        key = SCRIPT.get("key")
        sent = self.headers.get("Authorization", "")
        if key and sent != f"Bearer {key}":
            return self.answer(401, {"error": {"message": f"Incorrect API key provided: {sent}"}})
        if asked["model"] not in SCRIPT.get("models", ["teacher"]):
            return self.answer(404, {"error": {"message": "model not found"}})
        for name in SCRIPT.get("unknown", []):
            if name in asked:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                if name == "max_tokens":
                    said += " Use 'max_completion_tokens' instead."
                return self.answer(400, {"error": {"message": said, "param": name}})
        content = asked["messages"][-1]["content"]
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        pictures = [] if isinstance(content, str) else [p for p in content if "image_url" in p]
        text = "\n".join(parts)
        row = re.search(r"row (\w+):", text)
        entry |= {"row": row and row[1], "model": asked["model"], "pictures": len(pictures)}
        entry |= {"purpose": "check" if "Right answer:" in text else "write"}
        entry |= {"seed": asked.get("seed"), "temperature": asked.get("temperature")}
        entry |= {"text": text}
        with LOCK:
            first = SCRIPT.get("first", {}).get(entry["row"], [])
            action = first.pop(0) if first and entry["purpose"] == "write" else None
        if action is not None:
            entry["action"] = action
            return self.unpaid(action)
        if barrier := SCRIPT.get("met"):
            barrier.wait(30)
        time.sleep(SCRIPT.get("delay", 0))
        return self.paid(asked, entry, text)

    def unpaid(self, action: str) -> None:
        name, _, number = action.partition(":")
        if name == "drop":
            self.close_connection = True
            return self.connection.close()
        if name == "hang":
            time.sleep(float(number))
            self.close_connection = True
            return self.connection.close()
        said = {"error": {"message": f"as the script says: {action}"}}
        if name == "quota":
            return self.answer(429, {"error": {"message": "pay", "code": "insufficient_quota"}})
        return self.answer(int(name), said, **({"Retry_After": number} if number else {}))

    def paid(self, asked: dict, entry: dict, text: str) -> None:
        if entry["purpose"] == "check":
            right = re.search(r"Right answer: (.*)", text)[1]
            given = re.search(r"\nAnswer: (.*)", text)[1]
            yes = re.search(rf"\b{right}\b", given) and "checks" not in SCRIPT
            action = SCRIPT.get("checks") or ("yes" if yes else "no")
            content, finish, refusal = f"{action.split()[-1].title()}.", "stop", None
        else:
            heat = asked.get("temperature")
            attempt = HEATS.index(heat) if heat in HEATS else 0
            actions = SCRIPT.get("rows", {}).get(entry["row"]) or [SCRIPT.get("else", "right")]
            action = actions[min(attempt, len(actions) - 1)]
            if action == "ask":  # by what is asked for, in the mode without pictures
                action = "talk" if "conversation" in text else "told"
                action = "once" if "step by step" in text else action
            note = re.search(r"The note: (.*)", text)
            if action not in ("garbage", "shape", "text/html"):
                content, finish, refusal = written(action, note[1] if note else "")
        entry |= {"action": action, "paid": True}
        if action == "garbage":
            return self.answer(200, b'{"choices": [{"mess')
        if action == "shape":
            return self.answer(200, {"choices": []})
        message = {"role": "assistant", "content": content, "refusal": refusal}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
        if SCRIPT.get("usage", True):
            details = {"prompt_tokens_details": {"cached_tokens": 40}}
            body["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, **details}
        return self.answer(200, body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    # Counted where they are accepted, in order: who asks for the log and finds its own connection
    # alone knows that all that came before it is over.
    def process_request(self, request, client_address):
        with LOCK:
            STATE["connections"] += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with LOCK:
            STATE["connections"] -= 1
        super().shutdown_request(request)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        SCRIPT.update(json.load(file))
    if SCRIPT.get("barrier"):
        SCRIPT["met"] = threading.Barrier(SCRIPT["barrier"])
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
