"""A language model some of whose layers mix tokens by linear attention: what `jettrain checkpoint export` writes beside the
weights of a hybrid, for `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.

Plain PyTorch, token by token in the recurrences: to use a model and to check it, not to train it fast. `config.json` is that
of the family it was made from (`base_model_type`: llama, mistral, qwen2, qwen3, gemma3_text, jet_nemotron), with
`layer_types` (attn, swa, jet, gla, retnet, mamba2, deltanet, gdn, rwkv7) and the shapes of the mixers under
`efficient_attention_config`. All sequences of a batch have one length: padding is refused.
"""
import math

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class JettrainHybridConfig(PretrainedConfig):
    model_type = "jettrain_hybrid"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(self, layer_types=None, rope_theta=10000.0, rope_scaling=None, rope_local_base_freq=None, **kwargs):
        # Newer versions of transformers check and rewrite these, of which they know only their own.
        object.__setattr__(self, "hybrid", {"layer_types": list(layer_types or []), "rope_theta": rope_theta,
                                            "rope_scaling": rope_scaling, "rope_local_base_freq": rope_local_base_freq})
        for key, value in kwargs.items():
            if key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
                setattr(self, key, value)
        super().__init__(**kwargs)

    def to_dict(self):
        content = super().to_dict()
        content.pop("hybrid", None)
        content.pop("rope_parameters", None)
        content.update({key: value for key, value in self.hybrid.items() if value is not None})
        return content

    def get(self, key, fallback=None):
        value = getattr(self, key, None)
        return fallback if value is None else value


class State:
    """What the layers remember of the tokens so far."""

    is_compileable = False

    def __init__(self, layers):
        self.layers = [{} for _ in range(layers)]
        self.length = 0

    def get_seq_length(self, layer_idx=0):
        return self.length

    def reorder_cache(self, order):
        for layer in self.layers:
            for key, value in layer.items():
                layer[key] = value.index_select(0, order)


def inverse_frequencies(size, theta, scaling, context):
    """1 / theta^(2i/size), stretched as `rope_scaling` says, and the factor of queries and keys."""
    i = torch.arange(0, size, 2, dtype=torch.float64)
    plain = 1.0 / theta ** (i / size)
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        return plain, 1.0
    factor = scaling["factor"]
    original = scaling.get("original_max_position_embeddings") or context
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        length = 2 * math.pi / plain
        share = ((original / length - low) / (high - low)).clamp(0, 1)
        return (1 - share) * plain / factor + share * plain, 1.0
    if kind == "yarn":
        def pair(turns):
            return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(scaling.get("beta_fast", 32)), pair(scaling.get("beta_slow", 1))
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        share = ((torch.arange(size // 2, dtype=torch.float64) - low) / (high - low or 0.001)).clamp(0, 1)
        magnitude = scaling.get("attention_factor") or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return share * plain / factor + (1 - share) * plain, magnitude
    raise ValueError(f"rope type {kind} is not supported")


def rotate(x, first, frequencies, magnitude=1.0):
    """[B, T, H, D], rotated by halves at positions first, first + 1, …"""
    positions = torch.arange(first, first + x.shape[1], dtype=torch.float64)
    angles = (positions[:, None] * frequencies).to(x.device)
    cos, sin = (magnitude * y[None, :, None].to(x.dtype) for y in (angles.cos(), angles.sin()))
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def length_one(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


class Norm(nn.Module):
    def __init__(self, size, eps, adds_one=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if adds_one else torch.ones(size))
        self.eps, self.adds_one = eps, adds_one

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float() if self.adds_one else self.weight.float())).to(x.dtype)


def remembered(x, cache, key, count):
    """x behind the `count` inputs before it, which are zeros at a text's beginning; remembers the last of them."""
    before = cache.get(key)
    if before is None:
        before = x.new_zeros(x.shape[0], count, x.shape[2])
    whole = torch.cat([before, x], 1)
    cache[key] = whole[:, -count:]
    return whole


class ShortConvolution(nn.Module):
    """SiLU of a causal depthwise convolution of four taps."""

    def __init__(self, channels, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 4))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x, cache, key):
        whole, t = remembered(x, cache, key, 3), x.shape[1]
        u = sum(self.weight[:, 0, w] * whole[:, w : w + t] for w in range(4))
        return F.silu(u if self.bias is None else u + self.bias)


def decayed(q, k, v, g, scale, cache):
    """S <- e^g S + k v^T; o = scale S^T q. q, k [B, T, H, K], v [B, T, H, V], g [B, T, H] or [B, T, H, K]."""
    dtype = q.dtype
    q, k, v, g = (y.float() for y in (q, k, v, g))
    g = g[..., None] if g.dim() == 3 else g
    state = cache.get("state")
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for i in range(q.shape[1]):
        state = state * g[:, i, :, :, None].exp() + k[:, i, :, :, None] * v[:, i, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * scale)
    cache["state"] = state
    return torch.stack(outputs, 1).to(dtype)


def delta(q, k, v, g, beta, cache):
    """S <- e^g S; S <- S + k (beta (v - S^T k))^T; o = S^T q / sqrt(K)."""
    dtype = q.dtype
    q, k, v, g, beta = (y.float() for y in (q, k, v, g, beta))
    state = cache.get("state")
    if state is None:
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for i in range(q.shape[1]):
        state = state * g[:, i, :, None, None].exp()
        change = beta[:, i, :, None] * (v[:, i] - torch.einsum("bhkv,bhk->bhv", state, k[:, i]))
        state = state + k[:, i, :, :, None] * change[:, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, i]) * q.shape[3] ** -0.5)
    cache["state"] = state
    return torch.stack(outputs, 1).to(dtype)


class Attention(nn.Module):
    def __init__(self, config, window):
        super().__init__()
        family, hidden = config.base_model_type, config.hidden_size
        self.heads, self.window = config.num_attention_heads, window
        self.groups = config.get("num_key_value_heads", self.heads)
        self.size = config.get("head_dim", hidden // self.heads)
        always = family in ("qwen2", "jet_nemotron")
        asked = family != "mistral" and bool(config.get("attention_bias", False))
        self.q_proj = nn.Linear(hidden, self.heads * self.size, bias=always or asked)
        self.k_proj = nn.Linear(hidden, self.groups * self.size, bias=always or asked)
        self.v_proj = nn.Linear(hidden, self.groups * self.size, bias=always or asked)
        self.o_proj = nn.Linear(self.heads * self.size, hidden, bias=asked and not always)
        gemma = family == "gemma3_text"
        if gemma or family == "qwen3":
            self.q_norm = Norm(self.size, config.rms_norm_eps, gemma)
            self.k_norm = Norm(self.size, config.rms_norm_eps, gemma)
        theta, scaling = config.hybrid["rope_theta"], config.hybrid["rope_scaling"]
        if gemma and window:
            theta, scaling = config.hybrid["rope_local_base_freq"] or 10000.0, None
        # Computed when it runs: a model may be made where tensors have no values.
        self.angles = (self.size, theta, scaling, config.get("max_position_embeddings"))
        self.scale = (config.get("query_pre_attn_scalar", 256) if gemma else self.size) ** -0.5

    def forward(self, x, cache, first):
        b, t, _ = x.shape
        q = self.q_proj(x).reshape(b, t, self.heads, self.size)
        k = self.k_proj(x).reshape(b, t, self.groups, self.size)
        v = self.v_proj(x).reshape(b, t, self.groups, self.size)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        frequencies, magnitude = inverse_frequencies(*self.angles)
        q, k = (rotate(y, first, frequencies, magnitude) for y in (q, k))
        if "k" in cache:
            k, v = torch.cat([cache["k"], k], 1), torch.cat([cache["v"], v], 1)
        keep = self.window or k.shape[1]
        cache["k"], cache["v"] = k[:, -keep:], v[:, -keep:]
        i = torch.arange(k.shape[1] - t, k.shape[1], device=x.device)[:, None]
        j = torch.arange(k.shape[1], device=x.device)[None]
        seen = (j <= i) & (j > i - keep)
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=2) for y in (k, v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k).float() * self.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype)
        return self.o_proj(torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, t, self.heads * self.size))


class Generator(nn.Module):
    def __init__(self, hidden, values, reduction):
        super().__init__()
        self.w1 = nn.Linear(hidden, values // reduction, bias=False)
        self.w2 = nn.Linear(values // reduction, 4 * values, bias=True)


class DynamicConvolution(nn.Module):
    def __init__(self, hidden, values, reduction):
        super().__init__()
        self.kernel_generator = Generator(hidden, values, reduction)

    def forward(self, x, v, cache):
        b, t, channels = v.shape
        taps = self.kernel_generator.w2(F.silu(self.kernel_generator.w1(x))).reshape(b, t, channels, 4)
        whole = remembered(v, cache, "conv", 3)
        return F.silu(sum(taps[..., w] * whole[:, w : w + t] for w in range(4)))


class Linear(nn.Module):
    """The linear mixers; the names of their parameters are those of flash-linear-attention's layers."""

    def __init__(self, config, kind):
        super().__init__()
        c, hidden = config.efficient_attention_config[kind], config.hidden_size
        self.kind, self.heads, self.size = kind, c["num_heads"], c["head_dim"]
        self.eps = float(c.get("norm_eps", 1e-5))
        self.values = round(self.size * float(c.get("expand_v", 2 if kind == "jet" else 1)))
        keys, values = self.heads * self.size, self.heads * self.values

        def project(name, outputs):
            setattr(self, name, nn.Linear(hidden, outputs, bias=False))

        if kind == "mamba2":
            self.groups, self.states = c.get("n_groups", 1), c["state_size"]
            channels = keys + 2 * self.groups * self.states
            project("in_proj", keys + channels + self.heads)
            self.conv1d = ShortConvolution(channels, bias=True)
            self.dt_bias, self.A_log = (nn.Parameter(torch.zeros(self.heads)) for _ in range(2))
            self.D = nn.Parameter(torch.ones(self.heads))
            self.norm = Norm(keys, self.eps)
            self.out_proj = nn.Linear(keys, hidden, bias=False)
            return
        if kind == "rwkv7":
            for name in "rwkvag":
                setattr(self, "x_" + name, nn.Parameter(torch.zeros(1, 1, hidden)))
            self.k_k, self.k_a = nn.Parameter(torch.ones(keys)), nn.Parameter(torch.ones(keys))
            self.r_k = nn.Parameter(torch.zeros(self.heads, self.size))
            for name in ("r_proj", "k_proj", "v_proj"):
                project(name, keys)
            self.w_lora = LowRank(hidden, c.get("decay_low_rank_dim", 32), keys, nn.Tanh(), True)
            self.a_lora = LowRank(hidden, c.get("a_low_rank_dim", 32), keys, nn.Identity(), True)
            self.g_lora = LowRank(hidden, c.get("gate_low_rank_dim", 16), keys, nn.Sigmoid(), False)
            self.g_norm = nn.GroupNorm(self.heads, keys, eps=self.size * self.eps)
            self.o_proj = nn.Linear(keys, hidden, bias=False)
            return
        project("q_proj", keys)
        project("k_proj", keys)
        project("v_proj", values)
        self.o_proj = nn.Linear(values, hidden, bias=False)
        if kind != "deltanet":
            project("g_proj", values)
        if kind in ("jet", "gdn", "deltanet"):
            project("b_proj", self.heads)
            self.o_norm = Norm(self.values, self.eps)
        else:
            self.g_norm_swish_gate = Norm(self.values, self.eps)
        if kind in ("jet", "gdn"):
            project("a_proj", self.heads)
            self.A_log, self.dt_bias = (nn.Parameter(torch.zeros(self.heads)) for _ in range(2))
        if kind in ("gdn", "deltanet"):
            self.q_conv1d, self.k_conv1d = ShortConvolution(keys), ShortConvolution(keys)
            self.v_conv1d = ShortConvolution(values)
        if kind == "jet":
            self.dynamic_conv1d = DynamicConvolution(hidden, values, c.get("dconv_generator_reduction", 8))
        if kind == "gla":
            rank = c.get("gate_low_rank_dim", 16)
            self.gk_proj = nn.Sequential(nn.Linear(hidden, rank, bias=False), nn.Linear(rank, keys, bias=True))

    def split(self, x, size):
        return x.reshape(x.shape[0], x.shape[1], -1, size)

    def gates(self, x):
        return -self.A_log.float().exp() * F.softplus((self.a_proj(x) + self.dt_bias).float())

    def finish(self, mixed, x):
        """The norm of every head, times the gate."""
        norm = self.o_norm if hasattr(self, "o_norm") else self.g_norm_swish_gate
        mixed = norm(mixed).flatten(2)
        return self.o_proj(mixed * F.silu(self.g_proj(x)) if hasattr(self, "g_proj") else mixed)

    def forward(self, x, cache, first):
        if self.kind == "mamba2":
            return self.mamba2(x, cache)
        if self.kind == "rwkv7":
            return self.rwkv7(x, cache)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.kind == "jet":
            q, k = (length_one(F.silu(self.split(y, self.size))) for y in (q, k))
            v = self.split(self.dynamic_conv1d(x, v, cache), self.values)
            return self.finish(delta(q, k, v, self.gates(x), self.b_proj(x).sigmoid(), cache), x)
        if self.kind in ("gdn", "deltanet"):
            q = length_one(self.split(self.q_conv1d(q, cache, "q"), self.size))
            k = length_one(self.split(self.k_conv1d(k, cache, "k"), self.size))
            v = self.split(self.v_conv1d(v, cache, "v"), self.values)
            beta = self.b_proj(x).sigmoid()
            g = self.gates(x) if self.kind == "gdn" else torch.zeros_like(beta)
            return self.finish(delta(q, k, v, g, beta, cache), x)
        q, k, v = self.split(q, self.size), self.split(k, self.size), self.split(v, self.values)
        if self.kind == "gla":
            g = self.split(F.logsigmoid(self.gk_proj(x)) / 16, self.size)
        else:
            frequencies, _ = inverse_frequencies(self.size, 10000.0, None, None)
            q, k = (rotate(y, first, frequencies) for y in (q, k))
            heads = torch.arange(self.heads, dtype=torch.float64, device=x.device)
            g = torch.log1p(-(2.0 ** (-5 - heads))).float().expand(x.shape[0], x.shape[1], self.heads)
        return self.finish(decayed(q, k, v, g, self.size**-0.5, cache), x)

    def mamba2(self, x, cache):
        b, t, _ = x.shape
        inner, states = self.heads * self.size, self.groups * self.states
        gate, mixed, dt = self.in_proj(x).split([inner, inner + 2 * states, self.heads], -1)
        v, k, q = self.conv1d(mixed, cache, "conv").split([inner, states, states], -1)
        dt = F.softplus(dt + self.dt_bias)
        k, q = (y.reshape(b, t, self.groups, -1).repeat_interleave(self.heads // self.groups, 2) for y in (k, q))
        v = self.split(v, self.size)
        y = decayed(q, k, v * dt[..., None], -self.A_log.exp() * dt, 1, cache) + self.D[:, None] * v
        y = (y.reshape(b, t, inner) * F.silu(gate)).reshape(b, t, self.groups, -1)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.out_proj(y.reshape(b, t, inner) * self.norm.weight)

    def rwkv7(self, x, cache):
        b, t, _ = x.shape
        change = remembered(x, cache, "last", 1)[:, :t] - x
        r, w, k, v, a, g = (x + change * getattr(self, "x_" + name) for name in "rwkvag")
        r, k, v = self.r_proj(r), self.k_proj(k), self.v_proj(v)
        w = -math.exp(-0.5) * self.w_lora(w).sigmoid()
        a, g = self.a_lora(a).sigmoid(), self.g_lora(g)
        removed = length_one(self.split(k * self.k_k, self.size))
        k = k * (1 + (a - 1) * self.k_a)
        r, k, v, a, w = (self.split(y, self.size) for y in (r, k, v, a, w))
        state = cache.get("state")
        if state is None:
            state = x.new_zeros(b, self.heads, self.size, self.size, dtype=torch.float32)
        outputs = []
        for i in range(t):
            read = torch.einsum("bhk,bhkv->bhv", -removed[:, i].float(), state)
            state = state * w[:, i, :, :, None].float().exp() + (removed * a)[:, i, :, :, None] * read[:, :, None]
            state = state + k[:, i, :, :, None] * v[:, i, :, None]
            outputs.append(torch.einsum("bhkv,bhk->bhv", state, r[:, i].float()))
        cache["state"] = state
        o = self.g_norm(torch.stack(outputs, 1).to(x.dtype).reshape(b * t, -1)).reshape(b, t, -1)
        o = o + ((r * k * self.r_k).sum(-1, keepdim=True) * v).reshape(b, t, -1)
        return self.o_proj(o * g)


class LowRank(nn.Module):
    def __init__(self, inputs, rank, outputs, function, bias):
        super().__init__()
        self.lora = nn.Sequential(nn.Linear(inputs, rank, bias=False), function, nn.Linear(rank, outputs, bias=bias))

    def forward(self, x):
        return self.lora(x)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.is_gelu = config.get("hidden_activation", config.get("hidden_act", "silu")) == "gelu_pytorch_tanh"

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj((F.gelu(gate, approximate="tanh") if self.is_gelu else F.silu(gate)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config, kind):
        super().__init__()
        window = None
        if kind == "swa":
            window = config.get("efficient_attention_config", {}).get("swa", {}).get("window_size")
            window = window or config.sliding_window
        self.self_attn = Attention(config, window) if kind in ("attn", "swa") else Linear(config, kind)
        self.mlp = FeedForward(config)
        self.is_gemma = config.base_model_type == "gemma3_text"
        names = ["input_layernorm", "post_attention_layernorm"]
        if self.is_gemma:
            names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in names:
            setattr(self, name, Norm(config.hidden_size, config.rms_norm_eps, self.is_gemma))

    def forward(self, x, cache, first):
        mixed = self.self_attn(self.input_layernorm(x), cache, first)
        if self.is_gemma:
            x = x + self.post_attention_layernorm(mixed)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.hybrid["layer_types"])
        gemma = config.base_model_type == "gemma3_text"
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, gemma)
        self.scale = config.hidden_size**0.5 if gemma else 1.0


class JettrainHybridForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = JettrainHybridConfig
    base_model_prefix = "model"
    _is_stateful = True
    # Its attention is its own, whichever is asked for.
    _supports_sdpa = True
    # A list until version 4, the source of each since 5.
    _tied_weights_keys = (
        {"lm_head.weight": "model.embed_tokens.weight"} if int(transformers.__version__.split(".")[0]) >= 5
        else ["lm_head.weight"])

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        pass

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = State(len(self.model.layers))

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        seen = past_key_values.length if isinstance(past_key_values, State) else 0
        return {"input_ids": input_ids[:, seen:], "past_key_values": past_key_values, "attention_mask": attention_mask,
                "use_cache": True}

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None,
                use_cache=None, output_hidden_states=None, logits_to_keep=0, **kwargs):
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("this model takes no padding: give sequences of one length, or one at a time")
        state = past_key_values if isinstance(past_key_values, State) else State(len(self.model.layers))
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.model.scale != 1.0:
            x = x * torch.tensor(self.model.scale, dtype=x.dtype)
        hidden = [x]
        for layer, cache in zip(self.model.layers, state.layers):
            x = layer(x, cache, state.length)
            hidden.append(x)
        state.length += x.shape[1]
        x = hidden[-1] = self.model.norm(x)
        logits = self.lm_head(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state if use_cache is not False else None,
                                      hidden_states=tuple(hidden) if output_hidden_states else None)
