"""The network: a plain Llama decoder, small enough to read in one go."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocab: int = 3072
    dim: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 704
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self):
        return self.dim // self.heads


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    """Rotary embedding, first half against second half (the GGUF writer reorders the rows)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.attn_norm = RMSNorm(s.dim, s.eps)
        self.q = nn.Linear(s.dim, s.heads * s.head_dim, bias=False)
        self.k = nn.Linear(s.dim, s.kv_heads * s.head_dim, bias=False)
        self.v = nn.Linear(s.dim, s.kv_heads * s.head_dim, bias=False)
        self.o = nn.Linear(s.heads * s.head_dim, s.dim, bias=False)
        self.ffn_norm = RMSNorm(s.dim, s.eps)
        self.gate = nn.Linear(s.dim, s.ffn, bias=False)
        self.up = nn.Linear(s.dim, s.ffn, bias=False)
        self.down = nn.Linear(s.ffn, s.dim, bias=False)

    def forward(self, x, cos, sin):
        s, (b, t, _) = self.s, x.shape
        h = self.attn_norm(x)
        q = self.q(h).view(b, t, s.heads, s.head_dim).transpose(1, 2)
        k = self.k(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Wren(nn.Module):
    def __init__(self, s=Shape()):
        super().__init__()
        self.s = s
        self.embed = nn.Embedding(s.vocab, s.dim)  # also the output matrix
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = RMSNorm(s.dim, s.eps)
        freq = s.theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
        angle = torch.outer(torch.arange(s.context).float(), freq)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # Layers that write into the residual stream start smaller, so that depth does not blow it up.
                scale = (2 * s.layers) ** -0.5 if name.endswith(("o.weight", "down.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * scale)

    def hidden(self, ids):
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]].to(x.dtype), self.sin[: ids.shape[1]].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def loss(self, ids, learn, hidden=None):
        """Mean cross-entropy over the positions that are to be learnt."""
        h = (hidden or self.hidden)(ids[:, :-1])
        target, keep = ids[:, 1:], learn[:, 1:]
        logits = F.linear(h[keep], self.embed.weight)
        return F.cross_entropy(logits.float(), target[keep])
