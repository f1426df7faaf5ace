"""Drives vLLM in this process and times the parts of its steps. Protocol: docs/worker-protocol.md."""

import json
import os
import sys
import time

PROTOCOL = 1

# Methods by part, in vLLM 0.13 to 0.32 (V1 engine, both model runners). Whatever a version lacks is
# left out; a part is known when one of its methods was found.
SCHEDULER = {"schedule": ["schedule"], "process_outputs": ["update_from_output"]}
OUTPUTS = {"process_outputs": ["process_outputs"]}
RUNNER = {
    "prepare_inputs": ["_update_states", "_prepare_inputs", "_build_attention_metadata", "_preprocess",
                       "finish_requests", "add_requests", "update_requests", "prepare_inputs", "prepare_attn"],
    "model_execution": ["_model_forward"],
    "sampler": ["_sample", "_bookkeeping_sync", "sample"],
}
GRAPHS = {"model_execution": ["run_fullgraph", "run_pw_graph"]}
MODEL = {"model_execution": ["compute_logits"]}
PARTS = ["schedule", "prepare_inputs", "model_execution", "sampler", "process_outputs"]

# Steps after the last request joined that are not counted: the engine settles.
SETTLE = 3
# Steps without the whole batch after which it will not come together.
PATIENCE = 2000


class Refused(Exception):
    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Clock:
    """Time that methods take, each without that of the timed methods inside it, by part."""

    def __init__(self, wait):
        self.wait, self.steps, self.open, self.now = wait, [], [], {}

    def begin(self):
        self.now = {}
        self.steps.append(self.now)

    def timed(self, part, function, begins=False):
        device = part == "model_execution"

        def call(*args, **kwargs):
            if begins:
                self.begin()
            if device:
                # What was launched before is not the model's.
                self.wait()
            self.open.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if device:
                    self.wait()
                took = (time.perf_counter() - start) * 1e3
                inside = self.open.pop()
                if self.open:
                    self.open[-1] += took
                if part is not None:
                    self.now[part] = self.now.get(part, 0.0) + took - inside

        return call

    def watch(self, thing, methods, found):
        """Puts the clock around those of `methods` that `thing` has."""
        for part, names in methods.items():
            for name in names:
                function = getattr(thing, name, None)
                if callable(function):
                    try:
                        setattr(thing, name, self.timed(part, function))
                    except (AttributeError, TypeError):
                        continue
                    found.setdefault(part, []).append(f"{type(thing).__name__}.{name}")


def install(worker):
    """Runs where the model runs: times the model runner's methods."""
    runner = getattr(getattr(worker, "worker", worker), "model_runner", None)
    if runner is None:
        return {}

    def nothing():
        pass

    wait = nothing
    try:
        import torch

        if torch.cuda.is_available():
            wait = torch.cuda.synchronize
        elif getattr(torch, "accelerator", None) is not None and torch.accelerator.is_available():
            wait = torch.accelerator.synchronize
    except ImportError:
        pass
    clock, found = Clock(wait), {}
    clock.watch(runner, RUNNER, found)
    graphs = getattr(runner, "cudagraph_manager", None)
    if graphs is not None:
        clock.watch(graphs, GRAPHS, found)
    model = getattr(runner, "model", None)
    if model is not None and not callable(getattr(runner, "_model_forward", None)):
        # Such runners call the model itself; attributes reach it through the stand-in.
        class Timed:
            def __call__(self, *args, **kwargs):
                return forward(*args, **kwargs)

            def __getattr__(self, name):
                return getattr(model, name)

        forward = clock.timed("model_execution", model)
        try:
            runner.model = Timed()
            found.setdefault("model_execution", []).append(f"{type(model).__name__}.__call__")
        except (AttributeError, TypeError):
            pass
    if model is not None and "model_execution" in found:
        try:
            clock.watch(model, MODEL, found)
        except Exception:
            pass
    # Every step of the runner begins here; without a forward pass of its own it is the model's time.
    part = None if "model_execution" in found else "model_execution"
    execute = getattr(runner, "execute_model", None)
    if not callable(execute):
        return {}
    runner.execute_model = clock.timed(part, execute, begins=True)
    if part:
        found[part] = [f"{type(runner).__name__}.execute_model"]
    runner.vidur_clock = clock
    device = "the CPU"
    if wait is not nothing:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "an accelerator"
    found["device"] = device
    return found


def harvest(worker):
    """The times of the runner's steps since the last call."""
    runner = getattr(worker, "worker", worker).model_runner
    steps, runner.vidur_clock.steps = runner.vidur_clock.steps, []
    return steps


class Driver:
    def __init__(self):
        self.engine = self.params = self.next = None

    def hello(self, request):
        if request["protocol"] != PROTOCOL:
            raise Refused("protocol", f"the driver speaks protocol {PROTOCOL}, not {request['protocol']}")
        # The engine in this process, where its methods can be timed; read when vLLM is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            import vllm
        except ImportError as e:
            raise Refused("vllm", f"{sys.executable} cannot import vllm ({e})") from None
        if request.get("probe"):
            return {"engine": f"vllm {getattr(vllm, '__version__', 'unknown')}"}
        self.params = vllm.SamplingParams
        options = dict(model=request["model"], load_format="dummy", skip_tokenizer_init=True,
                       enforce_eager=request["enforce_eager"], tensor_parallel_size=request["tensor_parallel"],
                       max_num_seqs=request["max_num_seqs"], seed=request["seed"],
                       async_scheduling=False, enable_prefix_caching=False, disable_log_stats=True)
        if request.get("dtype"):
            options["dtype"] = request["dtype"]
        if request.get("max_model_len"):
            options["max_model_len"] = request["max_model_len"]
        options.update(request.get("engine_args") or {})
        while True:
            try:
                llm = vllm.LLM(**options)
                break
            except TypeError as e:
                # An option that this version does not know.
                unknown = [name for name in ("async_scheduling", "disable_log_stats") if name in str(e) and name in options]
                if not unknown:
                    raise Refused("engine", words_of(e)) from None
                del options[unknown[0]]
            except Exception as e:
                raise Refused("engine", words_of(e)) from None
        self.engine = llm.llm_engine
        self.next = 0
        core = getattr(getattr(self.engine, "engine_core", None), "engine_core", None)
        if core is None:
            raise Refused("engine", "this vLLM has no engine in its own process (V1, VLLM_ENABLE_V1_MULTIPROCESSING=0)")
        self.clock, found = Clock(lambda: None), {}
        self.clock.watch(core.scheduler, SCHEDULER, found)
        outputs = getattr(self.engine, "output_processor", None)
        if outputs is not None:
            self.clock.watch(outputs, OUTPUTS, found)
        self.rpc = core.model_executor.collective_rpc
        inside = self.rpc(install)[0]
        device = inside.pop("device", None)
        for part, names in inside.items():
            found.setdefault(part, []).extend(names)
        if "model_execution" not in found:
            raise Refused("engine", "the model runner has neither _model_forward nor execute_model to time")
        return {"protocol": PROTOCOL, "engine": f"vllm {getattr(vllm, '__version__', 'unknown')}",
                "device": device, "parts": found, "missing": [part for part in PARTS if part not in found]}

    def drive(self, request):
        batch, wanted = request["batch_size"], request["steps"]
        ids = [f"vidur-{self.next + i}" for i in range(batch)]
        self.next += batch
        # Prompts of one length, none the beginning of another.
        limit = request["prompt_tokens"] + wanted + SETTLE + PATIENCE
        longest = getattr(getattr(self.engine, "model_config", None), "max_model_len", None) or limit
        tokens = min(limit, longest) - request["prompt_tokens"]
        if tokens < wanted + SETTLE + 1:
            raise Refused("shape", f"{request['prompt_tokens']} prompt tokens and {wanted} steps exceed max_model_len {longest}")
        for i, name in enumerate(ids):
            prompt = [10 + (7 * (self.next + i) + 13 * at) % 900 for at in range(request["prompt_tokens"])]
            params = self.params(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        self.rpc(harvest)
        steps, begun, whole, misses = [], set(), 0, 0
        try:
            while len(steps) < wanted:
                self.clock.begin()
                start = time.perf_counter()
                outputs = self.engine.step()
                took = (time.perf_counter() - start) * 1e3
                inside = self.rpc(harvest)[0]
                here = {output.request_id for output in outputs} & set(ids)
                # A step counts when every request had its first token before it and got one more.
                if len(begun) == batch and len(here) == batch:
                    whole += 1
                    if whole > SETTLE:
                        if len(inside) != 1:
                            raise Refused("shape", f"{len(inside)} executions of the model in one step")
                        steps.append({"step": took, **self.clock.now, **inside[0]})
                else:
                    misses += 1
                begun |= here
                gone = any(output.finished for output in outputs)
                if gone or misses > PATIENCE or not self.engine.has_unfinished_requests():
                    break
        finally:
            self.engine.abort_request(ids)
            for _ in range(PATIENCE):
                if not self.engine.has_unfinished_requests():
                    break
                self.engine.step()
        if len(steps) < wanted:
            raise Refused("shape", f"the engine ran {batch} requests together in {len(steps)} steps of {wanted}; "
                          "give it more KV cache or sequences with --engine-args")
        return {"steps": steps}


def words_of(e):
    return " ".join(f"{type(e).__name__}: {e}".split())[:400]


def serve(driver, lines, out):
    handlers = {"hello": driver.hello, "drive": driver.drive}
    for line in lines:
        request = json.loads(line)
        try:
            if request["do"] not in handlers:
                raise Refused("protocol", f"unknown request {request['do']}")
            if request["do"] != "hello" and driver.engine is None:
                raise Refused("protocol", "the first request must be hello")
            reply = {"ok": handlers[request["do"]](request)}
        except Refused as e:
            reply = {"error": {"kind": e.kind, "message": str(e)}}
        except Exception as e:
            words = words_of(e)
            memory = isinstance(e, MemoryError) or "out of memory" in words.lower()
            reply = {"error": {"kind": "memory" if memory else "shape", "message": words}}
        reply["id"] = request["id"]
        out.write(json.dumps(reply) + "\n")
        out.flush()


def main():
    # vLLM and its libraries print to stdout as they please: they get stderr instead.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(Driver(), sys.stdin, out)
    except (BrokenPipeError, KeyboardInterrupt):
        pass


if __name__ == "__main__":
    main()
