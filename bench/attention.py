#!/usr/bin/env python3
"""Reference times on one GPU: ceilings, PyTorch's attention, cuBLAS, memory-bound ops, the published attention JVP.

The attention JVP is algorithm 2 of rCM (arXiv:2510.08431), FlashAttention-2 with a tangent, written here in Triton:

    S = scale q kᵀ,  P = softmax(S),  O = P v
    Ṡ = scale (q̇ kᵀ + q k̇ᵀ),  H = P ∘ Ṡ,  Ȯ = P v̇ + H v - rowsum(H) O

Every variant is compared with f64 before it is timed. README.md beside this says how to run it.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import subprocess
import sys
from collections import namedtuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

HEADS = 12
TOKENS = 32760  # Wan 480p x 77 frames
TEXT = 512
MODEL = 1536
HIDDEN = 8960
BACKENDS = {
    "torch flash": SDPBackend.FLASH_ATTENTION,
    "torch cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch efficient": SDPBackend.EFFICIENT_ATTENTION,
}
GROUPS = ("ceilings", "memory", "gemm", "sdpa", "jvp")


# ---- the attention JVP in Triton ----


@triton.jit
def scores(q, q_dot, k, k_dot):
    s = tl.dot(q, k.T)
    s_dot = tl.dot(q_dot, k.T)
    return s, tl.dot(q, k_dot.T, s_dot)


@triton.jit
def accumulate(s, s_dot, v, v_dot, m, l, mu, o, a, b, scale, SPLIT: tl.constexpr):
    """One block of keys. m: running maximum in units of log2; l: sum of P; mu: sum of H; o: P v; a: P v̇ (+ H v); b: H v."""
    log2_scale = scale * 1.4426950408889634
    m_new = tl.maximum(m, tl.max(s, 1) * log2_scale)
    alpha = tl.exp2(m - m_new)
    p = tl.exp2(s * log2_scale - m_new[:, None])
    h = p * (s_dot * scale)
    l = l * alpha + tl.sum(p, 1)
    mu = mu * alpha + tl.sum(h, 1)
    p = p.to(v.dtype)
    h = h.to(v.dtype)
    o = tl.dot(p, v, o * alpha[:, None])
    a = tl.dot(p, v_dot, a * alpha[:, None])
    if SPLIT:
        b = tl.dot(h, v, b * alpha[:, None])
    else:
        a = tl.dot(h, v, a)
    return m_new, l, mu, o, a, b


@triton.jit
def load(x, row, first, length, BLOCK: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr, MASK: tl.constexpr):
    """Rows row.. of a head that starts at `first`. TMA reads on past the head's end: what is there is masked later."""
    if TMA:
        tile = x.load([first + row, 0])
    else:
        rows = row + tl.arange(0, BLOCK)
        at = (first + rows).to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        if MASK:
            tile = tl.load(x + at, mask=(rows < length)[:, None], other=0.0)
        else:
            tile = tl.load(x + at)
    return tile


@triton.jit
def attention_jvp(
    q, k, v, q_dot, k_dot, v_dot, out, out_dot, lse, queries, keys, scale,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TMA: tl.constexpr, SPLIT: tl.constexpr, AHEAD: tl.constexpr,
):
    """q, out [heads, queries, WIDTH], k, v [heads, keys, WIDTH], their tangents, lse [heads, queries].

    TMA: the inputs are tensor descriptors over [rows, WIDTH], else pointers. SPLIT: three accumulators (P v̇ and H v
    apart), else two. AHEAD: the scores of the next block are computed beside the softmax of this one (with TMA only).
    """
    row = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    q_first = head * queries
    k_first = head * keys
    q_tile = load(q, row, q_first, queries, BLOCK_M, WIDTH, TMA, True)
    q_dot_tile = load(q_dot, row, q_first, queries, BLOCK_M, WIDTH, TMA, True)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    mu = tl.zeros([BLOCK_M], tl.float32)
    o = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    a = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    b = tl.zeros([BLOCK_M, WIDTH], tl.float32) if SPLIT else 0.0

    full = keys // BLOCK_N * BLOCK_N
    if AHEAD:
        s, s_dot = scores(q_tile, q_dot_tile, k.load([k_first, 0]), k_dot.load([k_first, 0]))
    for start in tl.range(0, full, BLOCK_N):
        at = start + BLOCK_N if AHEAD else start
        k_tile = load(k, at, k_first, keys, BLOCK_N, WIDTH, TMA, False)
        k_dot_tile = load(k_dot, at, k_first, keys, BLOCK_N, WIDTH, TMA, False)
        v_tile = load(v, start, k_first, keys, BLOCK_N, WIDTH, TMA, False)
        v_dot_tile = load(v_dot, start, k_first, keys, BLOCK_N, WIDTH, TMA, False)
        s_next, s_dot_next = scores(q_tile, q_dot_tile, k_tile, k_dot_tile)
        if not AHEAD:
            s, s_dot = s_next, s_dot_next
        m, l, mu, o, a, b = accumulate(s, s_dot, v_tile, v_dot_tile, m, l, mu, o, a, b, scale, SPLIT)
        if AHEAD:
            s, s_dot = s_next, s_dot_next
    if full < keys:
        if not AHEAD:
            k_tail = load(k, full, k_first, keys, BLOCK_N, WIDTH, TMA, True)
            k_dot_tail = load(k_dot, full, k_first, keys, BLOCK_N, WIDTH, TMA, True)
            s, s_dot = scores(q_tile, q_dot_tile, k_tail, k_dot_tail)
        v_tail = load(v, full, k_first, keys, BLOCK_N, WIDTH, TMA, True)
        v_dot_tail = load(v_dot, full, k_first, keys, BLOCK_N, WIDTH, TMA, True)
        s = tl.where((full + tl.arange(0, BLOCK_N) < keys)[None, :], s, float("-inf"))
        m, l, mu, o, a, b = accumulate(s, s_dot, v_tail, v_dot_tail, m, l, mu, o, a, b, scale, SPLIT)

    if SPLIT:
        a += b
    o = o / l[:, None]
    a = a / l[:, None] - (mu / l)[:, None] * o
    rows = row + tl.arange(0, BLOCK_M)
    valid = rows < queries
    at = (q_first + rows).to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(out + at, o.to(out.dtype.element_ty), mask=valid[:, None])
    tl.store(out_dot + at, a.to(out.dtype.element_ty), mask=valid[:, None])
    tl.store(lse + q_first + rows, (m + tl.log2(l)) * 0.6931471805599453, mask=valid)


Variant = namedtuple("Variant", "width block_m block_n warps stages tma split ahead")


def variants(width):
    """The tiles worth timing. Left out are those that spill much: 128 keys a block, 128 queries with four warps."""
    tiles = [(64, 32, 4), (64, 64, 4), (128, 32, 8), (128, 64, 8)]
    if width == 64:
        tiles += [(64, 128, 4), (128, 128, 8)]
    found = [
        Variant(width, *tile, stages, tma, split, False)
        for tile in tiles for stages in (1, 2, 3, 4) for tma in (True, False) for split in (True, False)
        if tma or stages > 1
    ]
    ahead = [(64, 16, 4), (64, 32, 4), (128, 16, 8), (128, 32, 8)] + ([(64, 64, 4), (128, 64, 8)] if width == 64 else [])
    found += [Variant(width, *tile, stages, True, False, True) for tile in ahead for stages in (2, 3, 4)]
    # q and q̇, and one stage of k, k̇, v, v̇, in bf16: a block has 227 KiB of shared memory.
    def shared(v):
        return 2 * v.width * (2 * v.block_m + 4 * v.block_n * max(1, v.stages))
    return [v for v in found if shared(v) < 225 * 1024]


def label(v):
    form = ("descriptors" if v.tma else "pointers") + (", 3 accumulators" if v.split else "") + (", ahead" if v.ahead else "")
    return f"{v.block_m}x{v.block_n} {v.warps} warps {v.stages} stages, {form}"


def build(variant, capability):
    """Compiles one variant (into Triton's disk cache: workers call this first, the parent again)."""
    v = variant
    q, k = ("*bf16",) * 2
    if v.tma:
        q, k = (f"tensordesc<bf16[{rows},{v.width}]>" for rows in (v.block_m, v.block_n))
    types = {"q": q, "k": k, "v": k, "q_dot": q, "k_dot": k, "v_dot": k, "out": "*bf16", "out_dot": "*bf16",
             "lse": "*fp32", "queries": "i32", "keys": "i32", "scale": "fp32"}
    constants = {"WIDTH": v.width, "BLOCK_M": v.block_m, "BLOCK_N": v.block_n, "TMA": v.tma, "SPLIT": v.split, "AHEAD": v.ahead}
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith("*")}
    source = ASTSource(attention_jvp, types | dict.fromkeys(constants, "constexpr"), constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": v.warps, "num_stages": v.stages})


def try_build(job):
    try:
        build(*job)
        return None
    except Exception as error:  # a variant the compiler refuses is reported, the others go on
        return f"{type(error).__name__}: {error}".splitlines()[0]


def jvp_call(kernel, v, x, x_dot, outputs):
    """A function that runs the kernel on x = q, k, v [heads, rows, width]."""
    (n, queries, width), keys = x[0].shape, x[1].shape[1]
    inputs = [*x, *x_dot]
    if v.tma:
        rows = [v.block_m, v.block_n, v.block_n] * 2
        inputs = [TensorDescriptor.from_tensor(t.view(-1, width), [r, width]) for t, r in zip(inputs, rows)]
    constants = (v.width, v.block_m, v.block_n, v.tma, v.split, v.ahead)
    launch = kernel[(triton.cdiv(queries, v.block_m), n, 1)]
    return lambda: launch(*inputs, *outputs, queries, keys, 1 / math.sqrt(width), *constants)


def jvp_outputs(q):
    nan = float("nan")
    return [torch.full_like(q, nan), torch.full_like(q, nan), torch.full(q.shape[:2], nan, device="cuda")]


def unfused_jvp(q, k, v, q_dot, k_dot, v_dot):
    """The same function with the scores in memory, in the dtype of its inputs; softmax in f32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = 1 / math.sqrt(q.shape[-1])
    s = (q @ k.mT).to(wide) * scale
    s_dot = ((q_dot @ k.mT).to(wide) + (q @ k_dot.mT).to(wide)) * scale
    p = s.softmax(-1)
    h = p * s_dot
    mu = h.sum(-1, keepdim=True)
    p, h = p.to(q.dtype), h.to(q.dtype)
    o = p @ v
    return o, (p @ v_dot + h @ v - mu * o).to(q.dtype), s.logsumexp(-1)


def relative(x, reference):
    return ((x.double() - reference).norm() / reference.norm()).item()


def hostile(rows, width):
    """Random bf16 with a mean in each channel and two channels of outliers."""
    x = torch.randn(2, rows, width, device="cuda") + torch.randn(width, device="cuda") * 0.5
    x[..., torch.randint(width, (2,))] *= 4
    return x.bfloat16()


def jvp_errors(kernels, width):
    """Relative L2 errors of O, Ȯ and lse against f64, each over that of the unfused bf16 computation; worst over shapes."""
    worst = dict.fromkeys(kernels, 0.0)
    for queries, keys in ((1000, 777), (129, 1024), (64, 1), (1, 300)):
        x = [hostile(queries, width), hostile(keys, width), hostile(keys, width)]
        x_dot = [hostile(queries, width), hostile(keys, width), hostile(keys, width)]
        exact = unfused_jvp(*(t.double() for t in (*x, *x_dot)))
        plain = [relative(y, e) for y, e in zip(unfused_jvp(*x, *x_dot), exact)]
        for v, kernel in kernels.items():
            outputs = jvp_outputs(x[0])
            jvp_call(kernel, v, x, x_dot, outputs)()
            for y, e, p in zip(outputs, exact, plain):
                ratio = relative(y, e) / max(p, 1e-6)  # an exact unfused result leaves f32 rounding as the measure
                worst[v] = max(worst[v], ratio if math.isfinite(ratio) else math.inf)
    return worst


# ---- timing ----


def median_seconds(call, budget=0.3, least=5, most=50):
    """The median of event times over about `budget` seconds, after warm-up."""
    for _ in range(2):
        call()
    events = []
    torch.cuda.synchronize()
    while len(events) < most:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        events.append((start, end))
        if len(events) >= least:
            end.synchronize()
            if events[0][0].elapsed_time(end) > budget * 1e3:
                break
    torch.cuda.synchronize()
    return statistics.median(s.elapsed_time(e) for s, e in events) / 1e3


class Rows(list):
    def add(self, name, implementation, seconds, flops=0, bytes=0, note=""):
        self.append({"name": name, "implementation": implementation, "seconds": seconds, "flops": flops,
                     "bytes": bytes, "note": note})
        print(f"{name}, {implementation}: {seconds * 1e3:.3f} ms", file=sys.stderr, flush=True)

    def time(self, name, implementation, call, flops=0, bytes=0, note=""):
        try:
            self.add(name, implementation, median_seconds(call), flops, bytes, note)
        except RuntimeError as error:  # a back end that refuses the shape, or too little memory
            print(f"{name}, {implementation}: {str(error).splitlines()[0]}", file=sys.stderr)


def draw(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda", dtype=dtype)


def rotate(calls):
    """Calls in turn, each over buffers of its own, so that none finds its input in the L2 cache."""
    state = iter(range(1 << 62))
    return lambda: calls[next(state) % len(calls)]()


def time_ceilings(rows):
    n = 8192
    a, b, c = draw(n, n), draw(n, n), draw(n, n)
    rows.time(f"matmul {n}x{n}x{n}", "torch cublas", lambda: torch.mm(a, b, out=c), flops=2 * n**3)
    source = draw(1 << 31)
    target = torch.empty_like(source)
    rows.time("copy 4GiB", "torch", lambda: target.copy_(source), bytes=2 * source.nbytes)


def time_memory(rows):
    def unary(name, f, width, traffic):
        sets = [draw(TOKENS, width) for _ in range(3)]
        calls = [lambda x=x, y=y: f(x, y) for x, y in zip(sets, sets[1:] + sets[:1])]
        rows.time(f"{name} {TOKENS}x{width}", "torch", rotate(calls), bytes=traffic * sets[0].nbytes)

    weight = draw(MODEL)
    unary("copy", lambda x, y: y.copy_(x), MODEL, 2)
    unary("copy", lambda x, y: y.copy_(x), HIDDEN, 2)
    unary("gelu", lambda x, _: F.gelu(x, approximate="tanh"), HIDDEN, 2)
    unary("gelu vjp", lambda x, y: torch.ops.aten.gelu_backward(y, x, approximate="tanh"), HIDDEN, 3)
    unary("layer_norm", lambda x, _: F.layer_norm(x, (MODEL,)), MODEL, 2)
    unary("rms_norm", lambda x, _: F.rms_norm(x, (MODEL,), weight), MODEL, 2)
    unary("gated_residual", lambda x, y: torch.addcmul(x, y, weight), MODEL, 3)
    unary("column_sum", lambda x, _: x.sum(0, dtype=torch.float32), MODEL, 1)
    unary("column_sum", lambda x, _: x.sum(0, dtype=torch.float32), HIDDEN, 1)

    parameter = torch.nn.Parameter(draw(1 << 28, dtype=torch.float32))
    parameter.grad = draw(1 << 28, dtype=torch.float32)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    rows.time(f"adamw {1 << 28}", "torch fused", optimizer.step, bytes=28 * (1 << 28))


def time_gemm(rows):
    for n, k in ((MODEL, MODEL), (HIDDEN, MODEL), (MODEL, HIDDEN)):
        x, w, bias, y_bar = draw(TOKENS, k), draw(n, k) / math.sqrt(k), draw(n), draw(TOKENS, n)
        shape, flops = f"{TOKENS}x{n}x{k}", 2 * TOKENS * n * k
        rows.time(f"linear forward {shape}", "torch cublas", lambda: torch.matmul(x, w.T), flops)
        rows.time(f"linear forward bias {shape}", "torch cublas", lambda: F.linear(x, w, bias), flops)
        rows.time(f"linear vjp x {shape}", "torch cublas", lambda: torch.matmul(y_bar, w), flops)
        rows.time(f"linear vjp w {shape}", "torch cublas", lambda: torch.matmul(y_bar.T, x), flops)


def shapes(width):
    """(queries, keys, name) of self-attention and of attention to text (which the published JVP gives tangents too)."""
    yield TOKENS, TOKENS, f"1x{HEADS}x{TOKENS}x{width}"
    yield TOKENS, TEXT, f"1x{HEADS}x{TOKENS}x{width} keys {TEXT}"


def time_sdpa(rows):
    for width in (128, 64):
        for queries, keys, shape in shapes(width):
            q, k, v = (draw(1, HEADS, n, width).requires_grad_() for n in (queries, keys, keys))
            y_bar = draw(1, HEADS, queries, width)
            product = 2 * HEADS * queries * keys * width
            for name, backend in BACKENDS.items():
                with sdpa_kernel(backend):
                    with torch.no_grad():
                        rows.time(f"attention forward {shape}", name, lambda: F.scaled_dot_product_attention(q, k, v), 2 * product)
                    try:
                        y = F.scaled_dot_product_attention(q, k, v)
                    except RuntimeError:
                        continue
                    backward = lambda: torch.autograd.grad(y, (q, k, v), y_bar, retain_graph=True)
                    rows.time(f"attention vjp {shape}", name, backward, 5 * product)
                    del y


def time_jvp(rows, pool, width, verbose):
    capability = torch.cuda.get_device_capability()
    candidates = [v for v in variants(width) if capability[0] >= 9 or not v.tma]
    capability = 10 * capability[0] + capability[1]
    refused = pool.map(try_build, [(v, capability) for v in candidates], chunksize=1)
    kernels = {}
    for v, reason in zip(candidates, refused):
        try:
            if reason is None:
                kernels[v] = build(v, capability)
                kernels[v]._init_handles()
        except Exception as error:  # more shared memory than the device has
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            kernels.pop(v, None)
        if reason:
            print(f"{label(v)}: left out, {reason}", file=sys.stderr)

    errors = jvp_errors(kernels, width)
    for v, error in errors.items():
        if error > 2:
            print(f"{label(v)}: left out, {error:.2f} of the unfused error", file=sys.stderr)
    right = [v for v, error in errors.items() if error <= 2]

    for queries, keys, shape in shapes(width):
        x = [draw(HEADS, n, width) for n in (queries, keys, keys)]
        x_dot = [draw(HEADS, n, width) for n in (queries, keys, keys)]
        outputs = jvp_outputs(x[0])
        calls = {v: jvp_call(kernels[v], v, x, x_dot, outputs) for v in right}
        quick = {v: median_seconds(calls[v], budget=0, least=3) for v in right}
        flops = 6 * 2 * HEADS * queries * keys * width
        ranked = sorted(quick, key=quick.get)
        if verbose:
            for v in ranked:
                k = kernels[v]
                print(f"  {flops / quick[v] / 1e12:7.1f} TFLOP/s  error {errors[v]:.2f}  {k.n_regs} registers, {k.n_spills} spilled  {label(v)}")
        published = [v for v in ranked if v.split and not v.tma]
        for name, chosen in (("triton published form", published), ("triton strongest", ranked)):
            again = {v: median_seconds(calls[v]) for v in chosen[:3]}
            if again:
                v = min(again, key=again.get)
                note = f"all 6 products; {label(v)}; {errors[v]:.2f} of the unfused error"
                rows.add(f"attention jvp {shape}", name, again[v], flops, note=note)


# ---- output ----


def fewstep_rows(program):
    text = subprocess.run([program, "bench", "--device", "cuda", "--json"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [{"implementation": "fewstep", "flops": 0, "bytes": 0, "note": ""} | row for row in json.loads(text)]


def print_table(rows):
    ceiling_flops = max((r["flops"] / r["seconds"] for r in rows if r["name"].startswith("matmul")), default=None)
    ceiling_bytes = max((r["bytes"] / r["seconds"] for r in rows if r["name"].startswith("copy 4GiB")), default=None)
    names = list(dict.fromkeys(r["name"] for r in rows))
    print(f"{'operation':<40} {'implementation':<22} {'ms':>9} {'rate':>14} {'ceiling':>8}  note")
    for row in sorted(rows, key=lambda r: names.index(r["name"])):
        ceiling, rate = "", ""
        for amount, unit, most in ((row["flops"], (1e12, "TFLOP/s"), ceiling_flops), (row["bytes"], (1e9, "GB/s"), ceiling_bytes)):
            if amount and not rate:
                rate = f"{amount / row['seconds'] / unit[0]:.1f} {unit[1]}"
                ceiling = f"{100 * amount / row['seconds'] / most:.1f} %" if most else ""
        print(f"{row['name']:<40} {row['implementation']:<22} {row['seconds'] * 1e3:9.3f} {rate:>14} {ceiling:>8}  {row['note']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups to run, of {','.join(GROUPS)}")
    parser.add_argument("--widths", default="128,64", help="head widths of the JVP")
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--fewstep", metavar="PATH", help="run this program's bench too and merge its rows")
    parser.add_argument("--verbose", action="store_true", help="print every variant of the JVP")
    args = parser.parse_args()
    groups = args.only.split(",")

    pool = multiprocessing.get_context("fork").Pool() if "jvp" in groups else None  # before CUDA starts in this process
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, triton {triton.__version__}, cudnn {torch.backends.cudnn.version()}")
    torch.manual_seed(0)
    rows = Rows()
    for group, run in (("ceilings", time_ceilings), ("memory", time_memory), ("gemm", time_gemm), ("sdpa", time_sdpa)):
        if group in groups:
            run(rows)
            torch.cuda.empty_cache()
    if pool:
        for width in map(int, args.widths.split(",")):
            time_jvp(rows, pool, width, args.verbose)
        pool.close()
    if args.fewstep:
        torch.cuda.empty_cache()
        rows += fewstep_rows(args.fewstep)
    print_table(rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": device, "torch": torch.__version__, "triton": triton.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
