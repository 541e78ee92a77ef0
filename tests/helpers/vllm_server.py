"""A fake vLLM server with a real tiny policy and faults on demand.

Routes, responses, errors and caches are those of vLLM 0.32, as far as `vrft.rollout.VLLMServer` uses them. Caches are
stale after an update until they are reset, a reloaded adapter of the same name is answered from stale caches, and
adapters of the vision tower are silently ignored unless the server supports them.
"""

from __future__ import annotations

import base64
import io
import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.policies import fresh_policy
from tests.helpers.ports import free_port
from vrft.policy.pretrained import vision_parameters
from vrft.rollout import Sampling, SamplingKey, TransformersEngine
from vrft.types import Frame, PromptBatch

State = dict[str, Tensor]


class VLLM:
    """The server and its state. `flags`: the relevant command-line flags."""

    def __init__(self, checkpoint: str, port: int | None = None, **flags: Any) -> None:
        self.flags = {
            "logprobs_mode": "processed_logprobs",
            "max_lora_rank": 16,
            "tower": False,
            "runtime_lora": True,
            "backend": "vrft",
        } | flags
        self.policy = fresh_policy(checkpoint)
        self.checkpoint = self.policy.checkpoint
        self.lock = threading.RLock()
        self.faults: deque[str] = deque()  # one per request for completions; "": no fault
        self.on_error: Callable[[], object] = lambda: None  # called before an answer with status 500
        self.lost: list[str] = []  # routes whose next request never arrives
        self.instead: dict[str, tuple[Any, int]] = {}  # overriding responses of routes: content and status
        self.requests: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        own = {value.data_ptr(): name for name, value in reversed(self.policy.model.state_dict().items())}
        state = self.policy.model.state_dict()
        self.original: State = {name: state[name].clone() for name in own.values()}  # a tied head is the embedding
        self.forget()
        server = self

        class Handler(self.routes()):  # type: ignore[misc]
            vllm = server

        self.http = ThreadingHTTPServer(("127.0.0.1", port or free_port()), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def routes(self) -> type[Routes]:
        return Routes

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def forget(self) -> None:
        """Reset the state, as a restart does."""
        self.version, self.paused, self.updating = "default", False, False
        self.weights: State = self.original
        self.adapters: dict[str, Path] = {}
        self.merged: dict[str, State] = {}
        self.cache: dict[str, State] = {}  # prompt and model -> the weights that computed the cached keys and values

    # ---------------------------------------------------------------------------------------------------- weights

    def load_file(self, path: Path) -> None:
        self.weights = self.weights | load_file(path)

    def adapted(self, name: str) -> State:
        """Return the weights with an adapter merged, without the tower's part unless supported."""
        if name not in self.merged:
            self.policy.model.load_state_dict(self.weights, strict=False)
            model = PeftModel.from_pretrained(self.policy.model, self.adapters[name])
            state = {k: v.clone() for k, v in model.merge_and_unload().state_dict().items()}
            if not self.flags["tower"]:
                tower = {id(parameter) for parameter in vision_parameters(self.policy.model)}
                names = {k for k, v in self.policy.model.named_parameters() if id(v) in tower}
                state |= {k: self.weights[k] for k in names}
            self.merged[name] = state
        return self.merged[name]

    # ------------------------------------------------------------------------------------------------- completions

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        model = body["model"]
        if model != self.checkpoint and model not in self.adapters:
            raise LookupError(f"The model `{model}` does not exist.")
        if body["n"] > 1 and body["temperature"] == 0:
            raise ValueError("n must be 1 when using greedy sampling.")
        if body["temperature"] > 2:
            raise ValueError("temperature must be in [0, 2].")
        chat, images = [], []
        for turn in body["messages"]:
            parts = []
            for part in turn["content"]:
                if part["type"] == "image_url":
                    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                    images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                    parts.append({"type": "image"})
                else:
                    parts.append(part)
            chat.append({"role": turn["role"], "content": parts})
        processor = self.policy.processor
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        inputs = dict(processor(text=[text], images=[images], return_tensors="pt"))
        key = json.dumps([model, body["messages"]])
        current = self.adapted(model) if model in self.adapters else self.weights
        state = self.cache.setdefault(key, current)
        self.policy.model.load_state_dict(state, strict=False)
        self.policy.banned_ids = torch.tensor([int(i) for i, bias in body["logit_bias"].items() if bias <= -100]).long()
        greedy = body["temperature"] == 0
        settings = (body["temperature"] or 1.0, body["top_p"], body["top_k"], body["min_p"], greedy)
        sample = SimpleNamespace(image=images[0], size=images[0].size)
        rollout = TransformersEngine().generate(
            self.policy,
            PromptBatch([sample], [Frame(1, 1)], [inputs]),  # type: ignore[list-item]
            body["n"],
            max_completion_length=body["max_tokens"],
            sampling=Sampling(*settings),
            key=SamplingKey(body.get("seed", 0), 0),
            on_token=lambda *_: None,
        )
        choices = []
        for i in range(body["n"]):
            kept = rollout.mask[i].bool()
            content = [{"token": "", "logprob": value} for value in rollout.sampling_log_probs[i][kept].tolist()]
            choices.append(
                {
                    "index": i,
                    "token_ids": rollout.ids[i][kept].tolist(),
                    "logprobs": {"content": content},
                    "finish_reason": "length" if rollout.truncated[i] else "stop",
                }
            )
        return {"model": model, "prompt_token_ids": inputs["input_ids"][0].tolist(), "choices": choices}

    def info(self) -> dict[str, Any]:
        flags = self.flags
        lora = {"max_lora_rank": flags["max_lora_rank"], "enable_tower_connector_lora": flags["tower"]}
        backend = flags["backend"]
        return {
            "vllm_config": {
                "model_config": {"logprobs_mode": flags["logprobs_mode"]},
                "device_config": {"device": "cpu"},
                "scheduler_config": {"enable_chunked_prefill": False},
                "lora_config": lora if flags["max_lora_rank"] else None,
                "weight_transfer_config": {"backend": backend} if backend else None,
            },
            "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": flags["runtime_lora"]},
        }


class Routes(BaseHTTPRequestHandler):
    """The HTTP routes of the server."""

    vllm: VLLM
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.vllm.instead:
            self.answer(*self.vllm.instead[path])
        elif path == "/server_info":
            self.answer(self.vllm.info())
        elif path == "/v1/models":
            base = {"id": self.vllm.checkpoint, "parent": None}
            self.answer({"data": [base, *({"id": n, "parent": base["id"]} for n in self.vllm.adapters)]})
        elif path == "/weight_info":
            self.answer({"weight_version": self.vllm.version})
        else:
            self.answer({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        vllm = self.vllm
        path, _, _ = self.path.partition("?")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        vllm.requests.append(path)
        with vllm.lock:
            if path in vllm.lost:
                vllm.lost.remove(path)
                self.close_connection = True
                self.connection.close()
            elif path in vllm.instead:
                self.answer(*vllm.instead[path])
            else:
                self.do(path, body)

    def do(self, path: str, body: dict[str, Any]) -> None:
        vllm = self.vllm
        if path == "/v1/chat/completions":
            self.completions(body)
        elif path == "/v1/load_lora_adapter":
            self.load_adapter(body)
        elif path == "/v1/unload_lora_adapter":
            vllm.adapters.pop(body["lora_name"], None)
            self.answer("ok")
        elif path in ("/pause", "/resume"):
            vllm.paused = path == "/pause"
            self.answer({"status": "done"})
        else:
            self.control(path, body)

    def completions(self, body: dict[str, Any]) -> None:
        vllm = self.vllm
        vllm.bodies.append(body)
        fault = vllm.faults.popleft() if vllm.faults else ""
        if fault == "500":
            vllm.on_error()
            return self.answer({"error": {"message": "EngineCore died"}}, 500)
        if fault == "redirect":
            return self.answer({}, 307)
        if fault.startswith("restart"):
            vllm.forget()
        if fault == "restart":
            self.close_connection = True
            return self.connection.close()
        return self.answer_completions(body, fault)

    def answer_completions(self, body: dict[str, Any], fault: str) -> None:
        vllm = self.vllm
        while fault == "slow" and not self.is_hung_up():
            self.pass_time(0.02)
        while vllm.paused:
            self.pass_time(0.02)
        try:
            reply = vllm.complete(body)
        except LookupError as error:
            return self.answer({"error": {"message": str(error)}}, 404)
        except ValueError as error:
            return self.answer({"error": {"message": str(error)}}, 400)
        if fault == "fewer":
            reply["choices"].pop()
        if fault == "nan":
            reply["choices"][0]["logprobs"]["content"][0]["logprob"] = float("nan")
        if fault == "aborted":
            reply["choices"][0]["finish_reason"] = "abort"
        return self.answer(reply, cut=fault == "cut")

    def is_hung_up(self) -> bool:
        """Return whether the client has closed its end of the connection."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def pass_time(self, seconds: float) -> None:
        """Sleep without the lock, so that other requests are answered."""
        self.vllm.lock.release()
        time.sleep(seconds)
        self.vllm.lock.acquire()

    def load_adapter(self, body: dict[str, Any]) -> None:
        if not self.vllm.flags["runtime_lora"]:
            return self.answer({"detail": "Not Found"}, 404)
        path, name = Path(body["lora_path"]), body["lora_name"]
        if not (path / "adapter_config.json").exists():
            message = f"Loading lora {name} failed: No adapter found for {path}"
            return self.answer({"error": {"message": message}}, 404)
        if name in self.vllm.adapters and not body.get("load_inplace"):
            message = f"The lora adapter '{name}' has already been loaded."
            return self.answer({"error": {"message": message}}, 400)
        self.vllm.adapters[name] = path
        self.vllm.merged.pop(name, None)
        return self.answer("ok")

    def control(self, path: str, body: dict[str, Any]) -> None:
        vllm = self.vllm
        failed = {"error": {"message": "Call to collective_rpc method failed"}}
        if path == "/reset_prefix_cache":
            vllm.cache.clear()
            return self.answer({"success": True})
        if path in ("/start_weight_update", "/finish_weight_update"):
            if not vllm.flags["backend"] or vllm.updating == (path == "/start_weight_update"):
                return self.answer(failed, 500)
            vllm.updating = not vllm.updating
        elif path == "/update_weights":
            if not vllm.updating or not Path(body["update_info"]["path"]).exists():
                vllm.updating = False
                return self.answer(failed, 500)
            vllm.load_file(Path(body["update_info"]["path"]))
        elif path == "/collective_rpc":
            if body["method"] != "reload_weights":
                return self.answer(failed, 500)
            vllm.load_file(next(Path(body["kwargs"]["weights_path"]).glob("*.safetensors")))
        elif path == "/update_weight_version":
            vllm.version = body["new_version"]
        elif path not in CONTROLS:
            return self.answer({"detail": "Not Found"}, 404)
        return self.answer({"message": "done"})

    def answer(self, content: Any, status: int = 200, cut: bool = False) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status == 307:
            self.send_header("Location", "http://203.0.113.1/v1/chat/completions")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


CONTROLS = ("/init_weight_transfer_engine", "/reset_mm_cache", "/reset_encoder_cache")
