"""A server that speaks as the Hugging Face Hub does of one model, org/tiny: for testing `jettrain models fetch hf:…` without a
network (HubTests.swift). It prints its port, then a line for each request: path, range, whether a token came.

usage: hub_server.py FOLDER [--token TOKEN] [--cut BYTES] [--damage]
--cut ends the answer to a large file after so many bytes the first time, as a network that fails; --damage changes a byte of
large files. It ends when its standard input does.
"""
import argparse
import hashlib
import http.server
import json
import os
import sys
import threading

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--token")
parser.add_argument("--cut", type=int)
parser.add_argument("--damage", action="store_true")
options = parser.parse_args()
was_cut = set()


def describe(name):
    with open(f"{options.folder}/{name}", "rb") as file:
        content = file.read()
    entry = {"rfilename": name, "size": len(content),
             "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if name.endswith(".safetensors"):
        entry["blobId"] = "0" * 40
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", first=0):
        is_large = self.path.endswith(".safetensors")
        cut = options.cut if options.cut and is_large and self.path not in was_cut else None
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{first + len(content)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None and cut < len(content):
            was_cut.add(self.path)
            self.close_connection = True

    def do_GET(self):
        print(self.path, self.headers.get("Range", "whole"), "token" if "Authorization" in self.headers else "open", flush=True)
        if options.token and self.headers.get("Authorization") != f"Bearer {options.token}":
            return self.answer(401)
        path = self.path.split("?")[0]
        if path == "/api/models/org/tiny/revision/main":
            siblings = [describe(name) for name in sorted(os.listdir(options.folder))] + [
                {"rfilename": "../evil.json", "size": 1, "blobId": ""},
                {"rfilename": "pytorch_model.bin", "size": 1, "blobId": ""}]
            return self.answer(200, json.dumps({"sha": "abc123", "siblings": siblings,
                                                "cardData": {"license": "apache-2.0"}}).encode())
        name = path.removeprefix("/org/tiny/resolve/abc123/")
        file = f"{options.folder}/{name}"
        if name == path or "/" in name or not os.path.exists(file):
            return self.answer(404)
        with open(file, "rb") as source:
            content = bytearray(source.read())
        if options.damage and name.endswith(".safetensors"):
            content[len(content) // 2] ^= 1
        wanted = self.headers.get("Range")
        if wanted:
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            return self.answer(206, bytes(content[first:]), first)
        return self.answer(200, bytes(content))


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
