"""A second, plain implementation of the hybrid in PyTorch, token by token where jettrain goes by chunks, from the
formulas of the paper (arXiv 2508.15884): what `jettrain verify` is held against at shapes that no released model has.
"""
import torch
import torch.nn.functional as F


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, theta):
    """[B, T, H, D], rotated by halves at positions 0, 1, …"""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x, p, config, window):
    b, t, _ = x.shape
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads

    def project(name, count):
        return (x @ p[name + "_proj.weight"].T + p[name + "_proj.bias"]).reshape(b, t, count, size)

    q, k, v = rotate(project("q", heads), config["rope_theta"]), rotate(project("k", groups), config["rope_theta"]), project("v", groups)
    k, v = (y.repeat_interleave(heads // groups, dim=2) for y in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * size**-0.5
    i, j = torch.arange(t)[:, None], torch.arange(t)[None]
    seen = (j <= i) & (j > i - (window or t))
    mixed = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return mixed.reshape(b, t, heads * size) @ p["o_proj.weight"].T


def jet(x, p, config):
    c = config["efficient_attention_config"]["jet"]
    b, t, _ = x.shape
    heads, keys = c["num_heads"], c["head_dim"]
    values = round(keys * float(c["expand_v"]))

    def unit(name):
        y = F.silu(x @ p[name + "_proj.weight"].T).reshape(b, t, heads, keys)
        return y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) + 1e-6)

    q, k = unit("q"), unit("k")
    g1, g2 = "dynamic_conv1d.kernel_generator.w1.", "dynamic_conv1d.kernel_generator.w2."
    kernels = (F.silu(x @ p[g1 + "weight"].T) @ p[g2 + "weight"].T + p[g2 + "bias"]).reshape(b, t, heads * values, 4)
    padded = F.pad(x @ p["v_proj.weight"].T, (0, 0, 3, 0))
    u = sum(kernels[..., w] * padded[:, w : w + t] for w in range(4))
    v = F.silu(u).reshape(b, t, heads, values)
    beta = torch.sigmoid(x @ p["b_proj.weight"].T)
    g = -p["A_log"].exp() * F.softplus(x @ p["a_proj.weight"].T + p["dt_bias"])
    state = torch.zeros(b, heads, keys, values)
    outputs = []
    for i in range(t):
        state = state * g[:, i, :, None, None].exp()
        change = beta[:, i, :, None] * (v[:, i] - torch.einsum("bhkv,bhk->bhv", state, k[:, i]))
        state = state + k[:, i, :, :, None] * change[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * keys**-0.5)
    o = rms_norm(torch.stack(outputs, 1), p["o_norm.weight"], float(c["norm_eps"])).reshape(b, t, -1)
    return (o * F.silu(x @ p["g_proj.weight"].T)) @ p["o_proj.weight"].T


def short_convolution(x, weight, bias=None):
    """SiLU of a causal depthwise convolution; weight [C, 1, 4]."""
    t = x.shape[1]
    padded = F.pad(x, (0, 0, 3, 0))
    u = sum(weight[:, 0, w] * padded[:, w : w + t] for w in range(4))
    return F.silu(u if bias is None else u + bias)


def length_one(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def decayed(q, k, v, g, scale):
    """S <- e^g S + k v^T; o = scale S^T q. g [B, T, H] or [B, T, H, K]."""
    g = g[..., None] if g.dim() == 3 else g
    state, outputs = 0, []
    for i in range(q.shape[1]):
        state = state * g[:, i, :, :, None].exp() + k[:, i, :, :, None] * v[:, i, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * scale)
    return torch.stack(outputs, 1)


def delta(q, k, v, g, beta):
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for i in range(q.shape[1]):
        state = state * g[:, i, :, None, None].exp()
        change = beta[:, i, :, None] * (v[:, i] - torch.einsum("bhkv,bhk->bhv", state, k[:, i]))
        state = state + k[:, i, :, :, None] * change[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * q.shape[3] ** -0.5)
    return torch.stack(outputs, 1)


def linear(x, p, c, kind):
    """The other linear mixers, after flash-linear-attention's layers (mamba2: transformers')."""
    b, t, _ = x.shape
    heads, size, eps = c["num_heads"], c["head_dim"], float(c.get("norm_eps", 1e-5))
    values = round(size * float(c.get("expand_v", 1)))

    def project(name):
        return x @ p[name + "_proj.weight"].T

    def split(y, width):
        return y.reshape(b, t, heads, width)

    def gated(o, name):
        o = rms_norm(o, p[name + ".weight"], eps).reshape(b, t, -1)
        return (o * F.silu(project("g"))) @ p["o_proj.weight"].T

    if kind == "gla":
        gates = x @ p["gk_proj.0.weight"].T @ p["gk_proj.1.weight"].T + p["gk_proj.1.bias"]
        q, k, v = split(project("q"), size), split(project("k"), size), split(project("v"), values)
        return gated(decayed(q, k, v, split(F.logsigmoid(gates) / 16, size), size**-0.5), "g_norm_swish_gate")
    if kind == "retnet":
        q, k = rotate(split(project("q"), size), 10000.0), rotate(split(project("k"), size), 10000.0)
        g = torch.log(1 - 2.0 ** (-5 - torch.arange(heads))).expand(b, t, heads)
        return gated(decayed(q, k, split(project("v"), values), g, size**-0.5), "g_norm_swish_gate")
    if kind in ("deltanet", "gdn"):
        q, k = (length_one(split(short_convolution(project(n), p[n + "_conv1d.weight"]), size)) for n in "qk")
        v = split(short_convolution(project("v"), p["v_conv1d.weight"]), values)
        beta = torch.sigmoid(project("b"))
        if kind == "deltanet":
            o = rms_norm(delta(q, k, v, torch.zeros_like(beta), beta), p["o_norm.weight"], eps)
            return o.reshape(b, t, -1) @ p["o_proj.weight"].T
        g = -p["A_log"].exp() * F.softplus(project("a") + p["dt_bias"])
        return gated(delta(q, k, v, g, beta), "o_norm")
    if kind == "mamba2":
        inner, states = heads * size, c["n_groups"] * c["state_size"]
        gate, mixed, dt = (x @ p["in_proj.weight"].T).split([inner, inner + 2 * states, heads], -1)
        mixed = short_convolution(mixed, p["conv1d.weight"], p["conv1d.bias"])
        v, k, q = mixed.split([inner, states, states], -1)
        dt = F.softplus(dt + p["dt_bias"])
        k, q = (y.reshape(b, t, c["n_groups"], -1).repeat_interleave(heads // c["n_groups"], 2) for y in (k, q))
        v = split(v, size)
        y = decayed(q, k, v * dt[..., None], -p["A_log"].exp() * dt, 1) + p["D"][:, None] * v
        y = (y.reshape(b, t, inner) * F.silu(gate)).reshape(b, t, c["n_groups"], -1)
        return (rms_norm(y, 1, eps).reshape(b, t, inner) * p["norm.weight"]) @ p["out_proj.weight"].T
    assert kind == "rwkv7"
    change = F.pad(x, (0, 0, 1, 0))[:, :t] - x
    r, w, k, v, a, g = (x + change * p["x_" + n].reshape(-1) for n in "rwkvag")

    def low_rank(y, name, function):
        y = function(y @ p[name + ".lora.0.weight"].T) @ p[name + ".lora.2.weight"].T
        return y + p[name + ".lora.2.bias"] if name + ".lora.2.bias" in p else y

    r, k, v = (y @ p[n + "_proj.weight"].T for n, y in (("r", r), ("k", k), ("v", v)))
    w = -0.6065306597126334 * torch.sigmoid(low_rank(w, "w_lora", torch.tanh))
    a = torch.sigmoid(low_rank(a, "a_lora", lambda y: y))
    g = low_rank(g, "g_lora", torch.sigmoid)
    removed = length_one(split(k * p["k_k"], size))
    k = k * (1 + (a - 1) * p["k_a"])
    r, k, v, a, w = (split(y, size) for y in (r, k, v, a, w))
    state = torch.zeros(b, heads, size, size)
    outputs = []
    for i in range(t):
        read = torch.einsum("bhk,bhkv->bhv", -removed[:, i], state)
        state = state * w[:, i, :, :, None].exp() + (removed * a)[:, i, :, :, None] * read[:, :, None]
        state = state + k[:, i, :, :, None] * v[:, i, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, r[:, i]))
    o = torch.stack(outputs, 1).reshape(b * t, -1)
    o = F.group_norm(o, heads, p["g_norm.weight"], p["g_norm.bias"], size * eps).reshape(b, t, -1)
    o = o + ((r * k * p["r_k"]).sum(-1, keepdim=True) * v).reshape(b, t, -1)
    return (o * g) @ p["o_proj.weight"].T


def forward(ids, weights, config):
    """Logits, and the hidden states as make_golden.py wants them."""
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]
    hidden = []
    for layer, kind in enumerate(config["layer_types"]):
        hidden.append(x)
        prefix = f"model.layers.{layer}."
        mixer = {n[len(prefix) + 10 :]: w for n, w in weights.items() if n.startswith(prefix + "self_attn.")}
        y = rms_norm(x, weights[prefix + "input_layernorm.weight"], eps)
        if kind == "jet":
            x = x + jet(y, mixer, config)
        elif kind not in ("attn", "swa"):
            x = x + linear(y, mixer, config["efficient_attention_config"][kind], kind)
        else:
            window = config["efficient_attention_config"]["swa"]["window_size"] if kind == "swa" else None
            x = x + attention(y, mixer, config, window)
        y = rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], eps)
        up = F.silu(y @ weights[prefix + "mlp.gate_proj.weight"].T) * (y @ weights[prefix + "mlp.up_proj.weight"].T)
        x = x + up @ weights[prefix + "mlp.down_proj.weight"].T
    hidden.append(rms_norm(x, weights["model.norm.weight"], eps))
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return hidden[-1] @ head.T, hidden
