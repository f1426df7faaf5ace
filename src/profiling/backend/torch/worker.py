"""The device side of `vidur profile`: JSON lines on stdin and stdout, torch underneath.

The other side plans, repeats, resumes and writes files; this side owns one device and times what it
is asked to. docs/worker-protocol.md describes the messages. Needs torch only (1.13 or newer), and
torch-neuronx on Neuron; faster kernels are used where they are installed and agree with the plain ones.
"""

import json
import math
import os
import sys
import time

PROTOCOL = 1
VERSION = "vidur-torch-worker 1"
# No copy of weights or caches is used again before this many others, at most.
MAX_COPIES = 64
# Rows of one forward pass through the LM head, at most: it runs on sampled tokens only.
BLOCK = 16
# Device cycles that a GPU idles ahead of a timed pass, so that launches queue up behind it and are
# not part of the times: about a millisecond.
DELAY_CYCLES = 1_500_000


class Refused(Exception):
    """A request that cannot be served; the worker goes on."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def available_memory():
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


class Effort:
    """Decides when there are enough samples; the first is always taken."""

    def __init__(self, request):
        self.repeats = max(1, int(request["repeats"]))
        self.min_time = float(request["min_time_s"])
        self.max_time = float(request["max_time_s"])
        self.begin = time.perf_counter()
        self.taken = 0

    def goes_on(self):
        spent = time.perf_counter() - self.begin
        enough = self.taken >= self.repeats and spent >= self.min_time
        late = self.taken > 0 and spent >= self.max_time
        self.taken += 1
        return not enough and not late


class WallTimer:
    """Times operators by the host's clock: for devices that run them at once."""

    name = "timing: wall clock"

    def __init__(self):
        self.ms = {}

    def start(self):
        self.last = time.perf_counter()

    def mark(self, op):
        now = time.perf_counter()
        self.ms.setdefault(op, []).append((now - self.last) * 1e3)
        self.last = time.perf_counter()

    def close(self):
        pass


class EventTimer:
    """Times operators by events in the device's own stream, behind a delay that lets launches queue."""

    name = "timing: CUDA events behind a delay"

    def __init__(self, torch):
        self.torch, self.ms, self.pending = torch, {}, []

    def start(self):
        try:
            self.torch.cuda._sleep(DELAY_CYCLES)
        except Exception:
            pass
        self.last = self.torch.cuda.Event(enable_timing=True)
        self.last.record()

    def mark(self, op):
        now = self.torch.cuda.Event(enable_timing=True)
        now.record()
        self.pending.append((op, self.last, now))
        self.last = now

    def close(self):
        self.torch.cuda.synchronize()
        for op, start, end in self.pending:
            self.ms.setdefault(op, []).append(start.elapsed_time(end))
        self.pending = []


class NoTimer:
    """Stands where nothing is timed."""

    def mark(self, op):
        pass


class Worker:
    def __init__(self):
        self.torch = None
        self.shard = None
        self.group = None

    # ---- messages -------------------------------------------------------------------------------

    def hello(self, request):
        if request.get("protocol") != PROTOCOL:
            raise Refused("protocol", f"this worker speaks protocol {PROTOCOL}, not {request.get('protocol')}")
        try:
            import torch
        except ImportError as e:
            raise Refused("torch", f"{sys.executable} cannot import torch ({e})")
        self.torch = torch
        self.F = torch.nn.functional
        self.seed = int(request.get("seed", 42))
        torch.manual_seed(self.seed)
        torch.set_grad_enabled(False)
        self.kind, device = request["device"], request["device"]
        self.plain = request.get("kernels") == "plain"
        if request.get("threads"):
            torch.set_num_threads(int(request["threads"]))
        info = {"name": "", "vendor": "", "cores": 0, "memory_bytes": 0}
        kernels = [f"torch {torch.__version__}"]
        if self.kind.startswith("cuda"):
            if not torch.cuda.is_available():
                raise Refused("device", f"torch {torch.__version__} sees no CUDA or ROCm device")
            index = int(self.kind.partition(":")[2] or 0)
            if index >= torch.cuda.device_count():
                raise Refused("device", f"there is no device {index}; torch sees {torch.cuda.device_count()}")
            torch.cuda.set_device(index)
            p = torch.cuda.get_device_properties(index)
            hip = getattr(torch.version, "hip", None)
            info = {"name": p.name, "vendor": "AMD" if hip else "NVIDIA",
                    "cores": p.multi_processor_count, "memory_bytes": p.total_memory}
            kernels.append(f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}")
            self.cache_bytes = max(getattr(p, "L2_cache_size", 0) or 0, 64 << 20)
            self.device = torch.device("cuda", index)
            torch.backends.cuda.matmul.allow_tf32 = True
        elif self.kind == "neuron":
            try:
                import torch_neuronx
            except ImportError as e:
                raise Refused("torch", f"{sys.executable} cannot import torch_neuronx ({e})")
            kernels.append(f"torch-neuronx {getattr(torch_neuronx, '__version__', 'unknown')}")
            self.cache_bytes, self.device = 0, torch.device("cpu")
        elif self.kind == "cpu":
            self.cache_bytes = int(request.get("cache_bytes") or (32 << 20))
            self.device = torch.device("cpu")
        else:
            raise Refused("device", f"unknown device {device}; expected cpu, cuda:<n> or neuron")
        self.cuda = self.device.type == "cuda"
        names = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
        wanted = request.get("dtype") or ("bf16" if self.cuda or self.kind == "neuron" else "f32")
        if wanted not in names:
            raise Refused("device", f"unknown dtype {wanted}; expected f32, bf16 or f16")
        self.dtype = names[wanted]
        self.choose_kernels(kernels)
        kernels.append(self.timer().name)
        distributed = []
        if torch.distributed.is_available():
            distributed = [b for b in ("nccl", "gloo") if getattr(torch.distributed, f"is_{b}_available", lambda: b == "gloo")()]
        return {"protocol": PROTOCOL, "worker": VERSION, "device": info, "kernels": kernels,
                "attention": self.attention_name, "dtype": wanted,
                "threads": torch.get_num_threads(), "distributed": distributed}

    def peaks(self, request):
        torch = self.torch
        n = 8192 if self.cuda else 1024
        a, b = self.noise(n, n), self.noise(n, n)
        c = torch.empty(n, n, dtype=self.dtype, device=self.device)
        flops = 2.0 * n**3 / self.best(lambda: torch.matmul(a, b, out=c))
        size = max(self.cache_bytes * 2, 64 << 20) // self.dtype_bytes() // 2
        src = self.noise(size)
        dst = torch.empty_like(src)
        bandwidth = 2.0 * size * self.dtype_bytes() / self.best(lambda: dst.copy_(src))
        return {"flops_per_s": flops, "bytes_per_s": bandwidth}

    def prepare(self, request):
        self.shard = None
        self.caches = {}
        self.release()
        shard, purpose = request["shard"], request["purpose"]
        layer_bytes = self.layer_bytes(shard)
        copies = 0
        if purpose != "attention":
            copies = min(max(-(-2 * self.cache_bytes // layer_bytes), 1), MAX_COPIES)
            table = shard["vocab"] * shard["hidden"] * self.dtype_bytes() if purpose == "mlp" else 0
            self.need(copies * layer_bytes + table, "the model's shard")
        self.shard, self.turn, self.table, self.rotary = shard, 0, None, None
        self.layers = [self.layer_weights(shard) for _ in range(copies)]
        if purpose == "mlp":
            self.table = self.noise(shard["vocab"], shard["hidden"])
        return {"layers": copies}

    def measure(self, request):
        if self.shard is None:
            raise Refused("shape", "no shard is prepared")
        shape, effort = request["shape"], Effort(request)
        if "tokens" in shape:
            ms = self.per_token(int(shape["tokens"]), bool(request.get("lm_head", True)), effort)
        elif "prefill" in shape:
            ms = self.attention([(int(shape["prefill"]["chunk"]), int(shape["prefill"]["kv"]))], [], effort)
        elif "decode" in shape:
            ms = self.attention([], [int(shape["decode"]["kv"])] * int(shape["decode"]["batch"]), effort)
        else:
            raise Refused("shape", f"unknown shape {json.dumps(shape)}")
        return {"samples": ms}

    def whole_layers(self, request):
        if self.shard is None or not self.layers:
            raise Refused("shape", "no shard is prepared for whole layers")
        effort = Effort(request)
        prefills = [tuple(p) for p in request["prefills"]]
        batch = Batch(self, prefills, request["decodes"])
        x0 = self.noise(batch.rows, self.shard["hidden"])

        def run():
            x = x0
            for layer in self.layers:
                x = self.layer(NoTimer(), layer, x, batch)

        run()
        ms = []
        while effort.goes_on():
            ms.append(self.seconds(run) * 1e3 / len(self.layers))
        return {"ms": ms}

    def collective(self, request):
        torch, dist = self.torch, self.torch.distributed
        if not dist.is_available():
            raise Refused("device", "this torch has no torch.distributed")
        from datetime import timedelta
        rank, world = int(request["rank"]), int(request["world"])
        group, stay = (request["init"], rank, world), False
        try:
            if self.group != group:
                self.leave_group()
                dist.init_process_group("nccl" if self.cuda else "gloo", init_method=request["init"], rank=rank,
                                        world_size=world, timeout=timedelta(seconds=float(request["timeout_s"])))
                self.group = group
            points = []
            for size in request["bytes"]:
                run = self.collective_step(request["name"], rank, world, int(size))
                for _ in range(3):
                    run()
                ms = []
                for _ in range(int(request["repeats"])):
                    dist.barrier()
                    ms.append(self.seconds(run) * 1e3)
                points.append({"bytes": int(size), "ms": ms})
            stay = bool(request.get("stay"))
            return {"points": points, "tool": f"torch {torch.__version__}, {dist.get_backend()}"}
        finally:
            if not stay:
                self.leave_group()

    def leave_group(self):
        if self.group is not None:
            self.group = None
            self.torch.distributed.destroy_process_group()

    def collective_step(self, name, rank, world, size):
        torch, dist = self.torch, self.torch.distributed
        count = max(-(-size // self.dtype_bytes()), world)
        piece = max(count // world, 1)
        new = lambda n: torch.zeros(n, dtype=self.dtype, device=self.device)
        if name == "all_reduce":
            x = new(count)
            return lambda: dist.all_reduce(x)
        if name == "all_gather":
            x, out = new(piece), [new(piece) for _ in range(world)]
            return lambda: dist.all_gather(out, x)
        if name == "reduce_scatter":
            x, out = [new(piece) for _ in range(world)], new(piece)
            return lambda: dist.reduce_scatter(out, x)
        if name == "all_to_all":
            x, out = new(piece * world), new(piece * world)
            return lambda: dist.all_to_all_single(out, x)
        if name == "send_recv":
            x = new(count)
            if rank == 0:
                return lambda: dist.send(x, 1)
            return lambda: dist.recv(x, 0)
        raise Refused("shape", f"unknown collective {name}")

    # ---- kernels --------------------------------------------------------------------------------

    def choose_kernels(self, kernels):
        """Takes the first kernel of each kind that imports, runs and agrees with the plain one."""
        torch, F = self.torch, self.F
        self.norm_fn, norm = self.plain_rms, "torch"
        self.act_fn = lambda x: F.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :]
        self.rope_fn, act, rope = self.plain_rope, "torch", "torch"
        if hasattr(F, "rms_norm"):
            self.norm_fn, norm = lambda x, w: F.rms_norm(x, (x.shape[-1],), w, 1e-6), "torch rms_norm"
        if self.cuda and not self.plain:
            try:
                import vllm._custom_ops  # noqa: F401  (registers torch.ops._C)
                import vllm

                x, w = self.noise(4, 256), self.noise(256)

                def vllm_rms(x, w):
                    out = torch.empty_like(x)
                    torch.ops._C.rms_norm(out, x, w, 1e-6)
                    return out

                if self.agrees(vllm_rms(x, w), self.plain_rms(x, w)):
                    self.norm_fn, norm = vllm_rms, f"vllm {vllm.__version__}"

                def vllm_act(x):
                    out = torch.empty(x.shape[0], x.shape[1] // 2, dtype=x.dtype, device=x.device)
                    torch.ops._C.silu_and_mul(out, x)
                    return out

                if self.agrees(vllm_act(x), self.act_fn(x)):
                    self.act_fn, act = vllm_act, f"vllm {vllm.__version__}"
            except Exception as e:
                print(f"vllm's kernels are not used: {e}", file=sys.stderr)
        self.sdpa = hasattr(F, "scaled_dot_product_attention")
        self.gqa = False
        if self.sdpa:
            try:
                q, k = torch.zeros(1, 2, 1, 16, device=self.device), torch.zeros(1, 1, 1, 16, device=self.device)
                F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
                self.gqa = True
            except TypeError:
                pass
        self.flash, self.infer = None, None
        self.attention_name = "sdpa" if self.sdpa else "matmul-softmax"
        if self.cuda and not self.plain:
            for name, make in (("flashinfer", self.load_flashinfer), ("flash_attn", self.load_flash_attn)):
                try:
                    self.attention_name = make()
                    break
                except Exception as e:
                    self.flash, self.infer = None, None
                    print(f"{name} is not used: {e}", file=sys.stderr)
        kernels += [f"attention: {self.attention_name}", f"norm: {norm}", f"act: {act}", f"rope: {rope}"]

    def load_flashinfer(self):
        import flashinfer

        workspace = self.torch.empty(256 << 20, dtype=self.torch.uint8, device=self.device)
        self.infer = (flashinfer, workspace)
        self.probe_attention()
        return f"flashinfer {flashinfer.__version__}"

    def load_flash_attn(self):
        import flash_attn

        self.flash = flash_attn
        self.probe_attention()
        return f"flash_attn {flash_attn.__version__}"

    def probe_attention(self):
        """Raises unless the kernel gives what plain attention gives, for a chunk and for decodes."""
        torch = self.torch
        kept = self.shard
        self.shard = {"q_heads": 4, "kv_heads": 2, "head_dim": 128}
        try:
            for prefills, decodes in (([(24, 40)], []), ([], [40, 40])):
                rows = sum(c for c, _ in prefills) + len(decodes)
                q = self.noise(rows, 4, 128)
                fast = Batch(self, prefills, decodes, copies=1)
                plain = Batch(self, prefills, decodes, copies=1, plain=True)
                for a, b in zip(fast.groups, plain.groups):
                    k, v = a.contiguous(0)
                    b.k[0].copy_(k)
                    b.v[0].copy_(v)
                if not self.agrees(fast.attend(q, 0), plain.attend(q, 0)):
                    raise RuntimeError("its results differ from plain attention")
        finally:
            self.shard = kept
            self.release()

    def agrees(self, a, b):
        a, b = a.float(), b.float()
        return bool((a - b).abs().max() <= 0.03 * b.abs().max() + 1e-3)

    def plain_rms(self, x, w):
        y = x.float()
        return (y * self.torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w

    def norm(self, x, w):
        if self.shard["norm"] == "layer_norm":
            return self.F.layer_norm(x, (x.shape[-1],), w, w)
        return self.norm_fn(x, w)

    def act(self, x):
        shard = self.shard
        if shard["gated"] and shard["activation"] == "silu":
            return self.act_fn(x)
        if shard["gated"]:
            half = x.shape[-1] // 2
            return self.F.gelu(x[..., :half]) * x[..., half:]
        return self.F.silu(x) if shard["activation"] == "silu" else self.F.gelu(x)

    def plain_rope(self, x, cos, sin):
        """Turns the first channels of each head: halves, as Llama and Qwen pair them."""
        half = cos.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return self.torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)

    def rotary_tables(self, positions):
        half = self.shard["rotated"] // 2
        inv = self.shard["rope_theta"] ** (-self.torch.arange(half, device=self.device).float() / half)
        angles = positions.float()[:, None] * inv[None]
        return tuple(t.to(self.dtype)[:, None, :] for t in (angles.cos(), angles.sin()))

    # ---- one decoder layer ----------------------------------------------------------------------

    def layer(self, timer, w, x, batch, qkv_only=False):
        """The layer once, for operator times and for whole layers alike; `batch` may be None."""
        shard, F = self.shard, self.F
        d, nq, nk = shard["head_dim"], shard["q_heads"], shard["kv_heads"]
        h = self.norm(x, w["norm1"])
        timer.mark("input_layernorm")
        qkv = F.linear(h, w["qkv"], w["qkv_bias"])
        timer.mark("attn_pre_proj")
        q, k, v = qkv.view(-1, nq + 2 * nk, d).split((nq, nk, nk), dim=1)
        if shard["qk_norm"]:
            q, k = self.norm_heads(q, w), self.norm_heads(k, w)
            timer.mark("attn_qk_norm")
        cos, sin = batch.rotary
        q, k = self.rope_fn(q, cos, sin), self.rope_fn(k, cos, sin)
        timer.mark("attn_rope")
        if batch.groups:
            copy = batch.next_copy()
            batch.save(k, v, copy)
            y = batch.attend(q, copy)
        else:
            y = q
        y = F.linear(y.reshape(x.shape[0], nq * d), w["post"], w["post_bias"])
        timer.mark("attn_post_proj")
        if shard["layout"] == "parallel":
            z = h
        else:
            if shard["layout"] == "sandwich":
                y = self.norm(y, w["norm2"])
                timer.mark("post_attention_layernorm")
            x = x + y
            timer.mark("add")
            z = self.norm(x, w["norm2"])
            timer.mark("post_attention_layernorm")
        z = F.linear(z, w["up"], w["up_bias"])
        timer.mark("mlp_up_proj")
        z = self.act(z)
        timer.mark("mlp_act")
        z = F.linear(z, w["down"], w["down_bias"])
        timer.mark("mlp_down_proj")
        if shard["layout"] == "parallel":
            x = x + y
            timer.mark("add")
        elif shard["layout"] == "sandwich":
            z = self.norm(z, w["norm2"])
            timer.mark("post_attention_layernorm")
        x = x + z
        timer.mark("add")
        return x

    def norm_heads(self, x, w):
        return self.norm_fn(x.reshape(-1, x.shape[-1]), w["head"]).view(x.shape)

    def per_token(self, rows, lm_head, effort):
        if not self.layers or self.table is None:
            raise Refused("shape", "the shard is not prepared for these")
        torch, shard = self.torch, self.shard
        columns = 6 * shard["hidden"] + 3 * (shard["q_heads"] + 2 * shard["kv_heads"]) * shard["head_dim"] + 4 * shard["ffn"]
        self.need(rows * (columns + (shard["vocab"] if lm_head else 0)) * self.dtype_bytes(), "the activations")
        batch = Batch(self, [], [], rows=rows)
        timer = self.timer()
        heads = 0

        def step(timer, head):
            layer = self.layers[self.turn % len(self.layers)]
            self.turn += 1
            ids = torch.randint(shard["vocab"], (rows,), device=self.device)
            timer.start()
            x = self.F.embedding(ids, self.table)
            timer.mark("emb")
            x = self.layer(timer, layer, x, batch)
            if head:
                self.F.linear(x, self.table)
                timer.mark("lm_head")
            timer.close()

        step(self.timer(), lm_head)
        effort.begin = time.perf_counter()
        while effort.goes_on():
            # The LM head is slow: it runs until it has its samples, not longer.
            head = lm_head and heads < effort.repeats
            heads += head
            step(timer, head)
        return timer.ms

    def attention(self, prefills, decodes, effort):
        shard = self.shard
        batch = Batch(self, prefills, decodes)
        q = self.noise(batch.rows, shard["q_heads"], shard["head_dim"])
        k = self.noise(batch.rows, shard["kv_heads"], shard["head_dim"])
        v = self.noise(batch.rows, shard["kv_heads"], shard["head_dim"])
        name = "attn_prefill" if prefills else "attn_decode"
        timer = self.timer()

        def step(timer):
            copy = batch.next_copy()
            timer.start()
            batch.save(k, v, copy)
            timer.mark("attn_kv_cache_save")
            batch.attend(q, copy)
            timer.mark(name)
            timer.close()

        step(self.timer())
        effort.begin = time.perf_counter()
        while effort.goes_on():
            step(timer)
        return timer.ms

    # ---- tools ----------------------------------------------------------------------------------

    def timer(self):
        return EventTimer(self.torch) if self.cuda else WallTimer()

    def seconds(self, run):
        if self.cuda:
            self.torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if self.cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter() - begin

    def best(self, run):
        run()
        begin, best = time.perf_counter(), math.inf
        while time.perf_counter() - begin < 0.25 or best == math.inf:
            best = min(best, max(self.seconds(run), 1e-9))
        return best

    def dtype_bytes(self):
        return self.torch.empty(0, dtype=self.dtype).element_size()

    def noise(self, *shape):
        return self.torch.randn(*shape, device=self.device).to(self.dtype) * 0.5

    def weight(self, rows, columns):
        return self.noise(rows, columns) * (2.0 / math.sqrt(columns))

    def need(self, bytes_, what):
        """Refuses on a CPU what would make the system kill this process; GPUs refuse by themselves."""
        if not self.cuda and bytes_ > 0.6 * available_memory():
            raise Refused("memory", f"{what} needs {bytes_ / 2**30:.1f} GiB, more than 60 % of the memory available")

    def release(self):
        if self.torch is not None and self.device.type == "cuda":
            self.torch.cuda.empty_cache()

    def layer_bytes(self, s):
        width = (s["q_heads"] + 2 * s["kv_heads"]) * s["head_dim"]
        up = 2 * s["ffn"] if s["gated"] else s["ffn"]
        return self.dtype_bytes() * s["hidden"] * (width + s["q_heads"] * s["head_dim"] + up + s["ffn"])

    def layer_weights(self, s):
        torch = self.torch
        width = (s["q_heads"] + 2 * s["kv_heads"]) * s["head_dim"]
        up = 2 * s["ffn"] if s["gated"] else s["ffn"]
        ones = lambda n: torch.ones(n, dtype=self.dtype, device=self.device)
        bias = lambda on, n: ones(n) * 0.01 if on else None
        return {
            "norm1": ones(s["hidden"]), "norm2": ones(s["hidden"]), "head": ones(s["head_dim"]),
            "qkv": self.weight(width, s["hidden"]), "qkv_bias": bias(s["qkv_bias"], width),
            "post": self.weight(s["hidden"], s["q_heads"] * s["head_dim"]), "post_bias": bias(s["linear_bias"], s["hidden"]),
            "up": self.weight(up, s["hidden"]), "up_bias": bias(s["linear_bias"], up),
            "down": self.weight(s["hidden"], s["ffn"]), "down_bias": bias(s["linear_bias"], s["hidden"]),
        }

    # ---- whole graphs ---------------------------------------------------------------------------

    def graph(self, request):
        """Traces layers as one graph for a bucket, times whole calls of it, and says where a NEFF is."""
        torch, shard, effort_of = self.torch, request["shard"], Effort
        batch, bucket, layers = int(request["batch"]), int(request["bucket"]), int(request["layers"])
        token, head = request["phase"] == "token", bool(request["head"])
        size = layers * self.layer_bytes(shard) + (2 if head else 0) * shard["vocab"] * shard["hidden"] * self.dtype_bytes()
        cache = 2 * layers * batch * bucket * shard["kv_heads"] * shard["head_dim"] * self.dtype_bytes()
        scores = 4 * batch * shard["q_heads"] * bucket * (1 if token else bucket)
        self.need(2 * size + cache + scores, "the graph")
        self.shard = shard
        model = decoder(self, layers, batch, bucket, token, head)
        length = 1 if token else bucket
        if head:
            x = torch.randint(shard["vocab"], (batch, length))
        else:
            x = self.noise(batch, length, shard["hidden"]).cpu()
        args = (x.to(self.device), torch.full((batch, 1), bucket - length, dtype=torch.long, device=self.device))
        begin = time.perf_counter()
        workdir = request["workdir"]
        if self.kind == "neuron":
            import torch_neuronx

            flags = ["--lnc", str(request["lnc"])] if request.get("lnc") else []
            traced = torch_neuronx.trace(model, args, compiler_workdir=workdir, compiler_args=flags)
            route = "wall clock of the traced module"
        else:
            traced = torch.jit.trace(model, args, check_trace=False)
            route = "wall clock of the traced module"
        compile_s = time.perf_counter() - begin
        traced(*args)
        traced(*args)
        effort, ms = effort_of(request), []
        while effort.goes_on():
            ms.append(self.seconds(lambda: traced(*args)) * 1e3)
        self.shard = None
        neff = None
        for folder, _, names in os.walk(workdir):
            neff = next((os.path.join(folder, n) for n in names if n.endswith(".neff")), neff)
        return {"ms": ms, "compile_s": compile_s, "route": route, "neff": neff}


def decoder(worker, layers, batch, bucket, token, head):
    """A stack of decoder layers with a KV cache of `bucket` tokens inside, as one module."""
    torch, s = worker.torch, worker.shard
    F, d, nq, nk = worker.F, s["head_dim"], s["q_heads"], s["kv_heads"]

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.names = []
            for i in range(layers):
                weights = worker.layer_weights(s)
                for name, value in weights.items():
                    if value is not None:
                        self.register_buffer(f"l{i}_{name}", value)
                self.names.append([name for name, value in weights.items() if value is not None])
                if token:
                    shape = (batch, nk, bucket, d)
                    self.register_buffer(f"l{i}_k", torch.zeros(*shape, dtype=worker.dtype, device=worker.device))
                    self.register_buffer(f"l{i}_v", torch.zeros(*shape, dtype=worker.dtype, device=worker.device))
            if head:
                self.register_buffer("table", worker.noise(s["vocab"], s["hidden"]))
                self.register_buffer("last", torch.ones(s["hidden"], dtype=worker.dtype, device=worker.device))
            half = s["rotated"] // 2
            inv = s["rope_theta"] ** (-torch.arange(half, device=worker.device).float() / half)
            self.register_buffer("inv", inv)

        def rms(self, x, w):
            if s["norm"] == "layer_norm":
                return F.layer_norm(x, (x.shape[-1],), w, w)
            return worker.plain_rms(x, w)

        def forward(self, x, start):
            if head:
                x = F.embedding(x, self.table)
            length = x.shape[1]
            positions = start + torch.arange(length, device=x.device)
            angles = positions[:, :, None].float() * self.inv
            cos, sin = (t.to(x.dtype)[:, None] for t in (angles.cos(), angles.sin()))
            seen = torch.arange(bucket, device=x.device)
            hidden = (seen[None, None, None, :] > positions[:, None, :, None])
            mask = torch.zeros(hidden.shape, dtype=torch.float32, device=x.device).masked_fill(hidden, -1e9)
            mask = mask.repeat_interleave(nq // nk, dim=2) if nq != nk else mask
            for i in range(layers):
                w = {name: getattr(self, f"l{i}_{name}") for name in self.names[i]}
                h = self.rms(x, w["norm1"])
                qkv = F.linear(h, w["qkv"], w.get("qkv_bias")).view(batch, length, nq + 2 * nk, d).transpose(1, 2)
                q, k, v = qkv.split((nq, nk, nk), dim=1)
                if s["qk_norm"]:
                    q, k = worker.plain_rms(q, w["head"]), worker.plain_rms(k, w["head"])
                q, k = worker.plain_rope(q, cos, sin), worker.plain_rope(k, cos, sin)
                if token:
                    # The new token takes its place by a select, which compiles on every device.
                    place = (seen[None, :] == positions)[:, None, :, None]
                    k = torch.where(place, k, getattr(self, f"l{i}_k"))
                    v = torch.where(place, v, getattr(self, f"l{i}_v"))
                # Query heads that share a key head go through one product.
                q = q.reshape(batch, nk, nq // nk * length, d)
                scores = (q @ k.transpose(2, 3)).float() / math.sqrt(d)
                # Rows are head-major: the mask of each row is that of its position.
                tiled = mask[:, :, :length].repeat(1, 1, nq // nk, 1)
                y = (torch.softmax(scores + tiled, dim=-1).to(v.dtype) @ v).view(batch, nq, length, d)
                y = F.linear(y.transpose(1, 2).reshape(batch, length, nq * d), w["post"], w.get("post_bias"))
                if s["layout"] == "parallel":
                    z = h
                else:
                    x = x + (self.rms(y, w["norm2"]) if s["layout"] == "sandwich" else y)
                    z = self.rms(x, w["norm2"])
                z = F.linear(worker.act(F.linear(z, w["up"], w.get("up_bias"))), w["down"], w.get("down_bias"))
                if s["layout"] == "parallel":
                    x = x + y
                elif s["layout"] == "sandwich":
                    z = self.rms(z, w["norm2"])
                x = x + z
            if head:
                x = F.linear(self.rms(x[:, -1], self.last), self.table)
            return x

    return Decoder().eval()


class Group:
    """Sequences with equally long caches and equally many new tokens, and their KV cache."""

    def __init__(self, worker, sequences, kv, new, copies, plain):
        self.w, self.n, self.kv, self.new = worker, sequences, kv, new
        torch, s = worker.torch, worker.shard
        self.total, self.nk, self.nq, self.d = kv + new, s["kv_heads"], s["q_heads"], s["head_dim"]
        one = 2 * sequences * self.total * self.nk * self.d * worker.dtype_bytes()
        if copies is None:
            copies = min(max(2 * worker.cache_bytes // max(one, 1), 1), MAX_COPIES)
        worker.need(one * copies, f"a KV cache of {sequences * self.total} tokens")
        self.copies = copies
        self.infer = worker.infer if not plain else None
        self.flash = worker.flash if not plain and not self.infer else None
        if self.infer:
            self.plan_pages()
        elif self.flash:
            shape = (copies, sequences, self.total, self.nk, self.d)
            self.k, self.v = worker.noise(*shape), worker.noise(*shape)
        else:
            shape = (copies, sequences, self.nk, self.total, self.d)
            self.k, self.v = worker.noise(*shape), worker.noise(*shape)
            self.mask = None
            if new > 1:
                self.mask = torch.ones(new, self.total, dtype=torch.bool, device=worker.device).tril(kv)

    def plan_pages(self):
        torch, (flashinfer, workspace) = self.w.torch, self.infer
        per = -(-self.total // BLOCK)
        self.per = per
        self.kv_pages = self.w.noise(self.copies, self.n * per, 2, BLOCK, self.nk, self.d)
        ints = dict(dtype=torch.int32, device=self.w.device)
        order = torch.randperm(self.n * per, device=self.w.device).to(torch.int32)
        self.order = order.long()
        indptr = torch.arange(self.n + 1, **ints) * per
        last = torch.full((self.n,), self.total - (per - 1) * BLOCK, **ints)
        dtype = self.w.dtype
        if self.new > 1:
            self.kernel = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
            starts = torch.arange(self.n + 1, **ints) * self.new
            self.kernel.plan(starts, indptr, order, last, self.nq, self.nk, self.d, BLOCK,
                             causal=True, q_data_type=dtype)
        else:
            self.kernel = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                workspace, "NHD", use_tensor_cores=self.nq // self.nk >= 4)
            self.kernel.plan(indptr, order, last, self.nq, self.nk, self.d, BLOCK,
                             q_data_type=dtype, kv_data_type=dtype)
        slots = torch.arange(self.kv, self.total, device=self.w.device)
        pages = self.order.view(self.n, per)[:, slots // BLOCK]
        self.page, self.place = pages.reshape(-1), (slots % BLOCK).repeat(self.n)

    def contiguous(self, copy):
        """Keys and values as `[sequences, kv heads, tokens, channels]`, for comparing kernels."""
        if self.infer:
            pages = self.kv_pages[copy][self.order].view(self.n, self.per, 2, BLOCK, self.nk, self.d)
            kv = pages.transpose(1, 2).reshape(self.n, 2, -1, self.nk, self.d)[:, :, : self.total]
            return kv[:, 0].transpose(1, 2), kv[:, 1].transpose(1, 2)
        if self.flash:
            return self.k[copy].transpose(1, 2), self.v[copy].transpose(1, 2)
        return self.k[copy], self.v[copy]

    def save(self, k, v, copy):
        copy %= self.copies
        if self.infer:
            cache = self.kv_pages[copy]
            cache[self.page, 0, self.place] = k
            cache[self.page, 1, self.place] = v
            return
        k, v = (t.view(self.n, self.new, self.nk, self.d) for t in (k, v))
        if self.flash:
            self.k[copy][:, self.kv :] = k
            self.v[copy][:, self.kv :] = v
        else:
            self.k[copy][:, :, self.kv :] = k.transpose(1, 2)
            self.v[copy][:, :, self.kv :] = v.transpose(1, 2)

    def attend(self, q, copy):
        copy %= self.copies
        if self.infer:
            return self.kernel.run(q.reshape(-1, self.nq, self.d), self.kv_pages[copy])
        q = q.reshape(self.n, self.new, self.nq, self.d)
        if self.flash:
            if self.new == 1:
                y = self.flash.flash_attn_with_kvcache(q, self.k[copy], self.v[copy], causal=True)
            else:
                y = self.flash.flash_attn_func(q, self.k[copy], self.v[copy], causal=True)
            return y.reshape(-1, self.nq, self.d)
        y = self.plain(q.transpose(1, 2), self.k[copy], self.v[copy])
        return y.transpose(1, 2).reshape(-1, self.nq, self.d)

    def plain(self, q, k, v):
        torch, w = self.w.torch, self.w
        share = self.nq // self.nk
        if w.sdpa and (w.gqa or share == 1):
            options = {"enable_gqa": True} if share > 1 else {}
            if self.kv == 0 and self.new > 1:
                return w.F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
            return w.F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **options)
        # Query heads that share a key head go through one product.
        grouped = q.reshape(self.n, self.nk, share * self.new, self.d)
        scores = grouped @ k.transpose(2, 3) / math.sqrt(self.d)
        if self.mask is not None:
            scores = scores.view(self.n, self.nk, share, self.new, self.total)
            scores = scores.masked_fill(~self.mask, float("-inf")).view(self.n, self.nk, -1, self.total)
        return (torch.softmax(scores, dim=-1) @ v).view(self.n, self.nq, self.new, self.d)


class Batch:
    """A batch: prompt chunks first, then decoding sequences, grouped by the length of their caches."""

    def __init__(self, worker, prefills, decodes, copies=None, plain=False, rows=None):
        self.w, self.turn, self.groups = worker, 0, []
        torch = worker.torch
        spans = [(chunk, kv) for chunk, kv in prefills]
        self.rows = rows if rows is not None else sum(c for c, _ in spans) + len(decodes)
        if rows is None and self.rows == 0:
            raise Refused("shape", "the batch is empty")
        self.order = None
        positions = [torch.arange(kv, kv + chunk) for chunk, kv in spans]
        for chunk, kv in spans:
            self.groups.append(Group(worker, 1, kv, chunk, copies, plain))
        lengths = sorted(set(decodes))
        for kv in lengths:
            count = sum(1 for other in decodes if other == kv)
            self.groups.append(Group(worker, count, kv, 1, copies, plain))
            positions.append(torch.full((count,), kv))
        if rows is not None:
            positions = [torch.arange(rows)]
        if "rotated" in worker.shard:
            self.rotary = worker.rotary_tables(torch.cat(positions).to(worker.device))
        self.sizes = [g.n * g.new for g in self.groups]

    def next_copy(self):
        self.turn += 1
        return self.turn

    def save(self, k, v, copy):
        for group, key, value in zip(self.groups, k.split(self.sizes), v.split(self.sizes)):
            group.save(key, value, copy)

    def attend(self, q, copy):
        parts = [group.attend(part, copy) for group, part in zip(self.groups, q.split(self.sizes))]
        return parts[0] if len(parts) == 1 else self.w.torch.cat(parts)


def serve(worker, lines, out):
    handlers = {"hello": worker.hello, "peaks": worker.peaks, "prepare": worker.prepare,
                "measure": worker.measure, "layers": worker.whole_layers,
                "collective": worker.collective, "graph": worker.graph}
    for line in lines:
        request = json.loads(line)
        try:
            if request["do"] not in handlers:
                raise Refused("protocol", f"unknown request {request['do']}")
            if request["do"] != "hello" and worker.torch is None:
                raise Refused("protocol", "the first request must be hello")
            reply = {"ok": handlers[request["do"]](request)}
        except Refused as e:
            reply = {"error": {"kind": e.kind, "message": str(e)}}
        except MemoryError:
            reply = {"error": {"kind": "memory", "message": "out of memory"}}
        except Exception as e:
            words = " ".join(f"{type(e).__name__}: {e}".split())[:400]
            memory = "out of memory" in words.lower() or "can't allocate memory" in words
            reply = {"error": {"kind": "memory" if memory else "shape", "message": words}}
            worker.release()
        reply["id"] = request["id"]
        out.write(json.dumps(reply) + "\n")
        out.flush()


def main():
    # Libraries and compilers print to stdout as they please: they get stderr instead.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        serve(Worker(), sys.stdin, out)
    except (BrokenPipeError, KeyboardInterrupt):
        pass


if __name__ == "__main__":
    main()
