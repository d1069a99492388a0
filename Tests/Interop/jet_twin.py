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
        else:
            window = config["efficient_attention_config"]["swa"]["window_size"] if kind == "swa" else None
            x = x + attention(y, mixer, config, window)
        y = rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], eps)
        up = F.silu(y @ weights[prefix + "mlp.gate_proj.weight"].T) * (y @ weights[prefix + "mlp.up_proj.weight"].T)
        x = x + up @ weights[prefix + "mlp.down_proj.weight"].T
    hidden.append(rms_norm(x, weights["model.norm.weight"], eps))
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return hidden[-1] @ head.T, hidden
