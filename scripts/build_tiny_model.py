"""Build the tiny Qwen3-MoE that ships with the project, and the prompts it is trained on.

    python scripts/build_tiny_model.py --out models/tiny-moe --prompts models/running-sums --seed 0

The task is *running sums*: to `3+1+2+2+5=` the right response is `3+1=4,4+2=6,6+2=8,8+5=13` and then end of sequence.
Supervised training on *noisy* demonstrations (every running sum is wrong with probability `--noise`, and the next one
adds to the wrong value) gives a start that knows the rule but samples noisily: greedy decoding is nearly always right,
sampling at temperature 1 is right less than half the time. That leaves reinforcement learning something to find
within minutes on two CPU cores. The same seed gives the same prompts everywhere, and the same weights on the same
machine, library versions and `--threads`.
"""

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig

Operands = tuple[int, ...]

CHARACTERS = "0123456789+=,"
SPECIAL = ("<pad>", "<eos>", "<unk>")
PAD_ID, EOS_ID = 0, 1
VOCABULARY_SIZE = 64
MAX_RESPONSE_TOKENS = 64
WRONG_BY = (-10, -3, -2, -1, 1, 2, 3, 10)

# Operands in a prompt → (train, held back) prompts. There are only 81 prompts of two operands and 729 of three, so a
# uniform mix of many distinct prompts is out of reach. Each length has the same share in both files; three operands
# lead, so that the start is right about as often as wrong and most groups of samples have both.
PROMPTS_BY_OPERANDS = {2: (64, 16), 3: (560, 140), 4: (280, 70), 5: (120, 30)}


def prompt_text(operands: Operands) -> str:
    return "+".join(map(str, operands)) + "="


def demonstration(operands: Operands, noise: float, rng: random.Random) -> str:
    """The worked answer; each running sum is off by one of `WRONG_BY` with probability `noise`, and stays positive."""
    total, parts = operands[0], []
    for operand in operands[1:]:
        value = total + operand
        if rng.random() < noise:
            value = rng.choice([value + off for off in WRONG_BY if value + off > 0])
        parts.append(f"{total}+{operand}={value}")
        total = value
    return ",".join(parts)


def draw_prompts(rng: random.Random) -> tuple[list[Operands], list[Operands]]:
    """Distinct prompts, (train, held back), disjoint, with the same share of each length, in random order."""
    train: list[Operands] = []
    held_back: list[Operands] = []
    for length, (train_count, held_back_count) in PROMPTS_BY_OPERANDS.items():
        codes = rng.sample(range(9**length), train_count + held_back_count)
        drawn = [tuple(1 + code // 9**place % 9 for place in range(length)) for code in codes]
        train += drawn[:train_count]
        held_back += drawn[train_count:]
    rng.shuffle(train)
    rng.shuffle(held_back)
    return train, held_back


def write_prompts(path: Path, prompts: Sequence[Operands]) -> None:
    rows = (
        {
            "prompt": prompt_text(operands),
            "task": "running-sums",
            "verifier": "exact_match",
            "reference": {"answer": str(sum(operands)), "after": "="},
        }
        for operands in prompts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; encoding adds no special token; ids without a character are reserved."""
    pieces = [*SPECIAL, *CHARACTERS]
    pieces += [f"<reserved-{index}>" for index in range(len(pieces), VOCABULARY_SIZE)]
    tokenizer = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(experts: int = 8, top_k: int = 2) -> Any:
    """A freshly initialised Qwen3-MoE in float32; 1,347,648 parameters with 8 experts."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=256,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )
    return model


def demonstrations(held_back: Sequence[Operands], noise: float, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, response) pairs, lengths uniform; the held-back prompts never occur."""
    never = set(held_back)
    lengths = sorted(PROMPTS_BY_OPERANDS)
    while True:
        operands = tuple(rng.randint(1, 9) for _ in range(rng.choice(lengths)))
        if operands not in never:
            yield prompt_text(operands), demonstration(operands, noise, rng)


def collate(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels`, each [batch, tokens]; labels are -100 off the response."""
    rows = [(tokenizer.encode(prompt), [*tokenizer.encode(response), EOS_ID]) for prompt, response in pairs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.full((len(rows), width), PAD_ID)
    labels = torch.full((len(rows), width), -100)
    for index, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[index, :end] = torch.tensor(prompt + response)
        labels[index, len(prompt) : end] = torch.tensor(response)
    return input_ids, (input_ids != PAD_ID).long(), labels


def learning_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from `peak` to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warm_start(
    model: Any, tokenizer: Any, pairs: Iterator[tuple[str, str]], steps: int, batch: int = 64, peak: float = 2e-3
) -> None:
    """Train `model` in place by maximum likelihood; prints the loss in nats a response token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.0)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        input_ids, mask, labels = collate(tokenizer, list(itertools.islice(pairs, batch)))
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.monotonic() - started:5.1f} s", flush=True)


@torch.inference_mode()
def respond(model: Any, prompt_ids: torch.Tensor, *, greedy: bool, generator: torch.Generator) -> list[list[int]]:
    """One response for each row of `prompt_ids` [prompts, tokens] (equal lengths): ids up to and with the first eos."""
    cache, tokens = None, prompt_ids
    drawn: list[torch.Tensor] = []
    ended = torch.zeros(len(prompt_ids), dtype=torch.bool)
    while len(drawn) < MAX_RESPONSE_TOKENS and not bool(ended.all()):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        if greedy:
            tokens = logits.argmax(-1, keepdim=True)
        else:
            tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        drawn.append(tokens)
        ended |= tokens[:, 0] == EOS_ID
    rows: list[list[int]] = torch.cat(drawn, 1).tolist()
    return [row[: row.index(EOS_ID) + 1] if EOS_ID in row else row for row in rows]


def evaluate(
    model: Any, tokenizer: Any, prompts: Sequence[Operands], samples: int, *, greedy: bool, seed: int
) -> tuple[float, list[int]]:
    """Share of right responses over `samples` responses a prompt, and every response's length in tokens (with eos)."""
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    right, lengths = 0, []
    for _, group in itertools.groupby(sorted(prompts, key=len), key=len):
        asked = [operands for operands in group for _ in range(samples)]
        prompt_ids = torch.tensor([tokenizer.encode(prompt_text(operands)) for operands in asked])
        responses = respond(model, prompt_ids, greedy=greedy, generator=generator)
        for operands, response in zip(asked, responses, strict=True):
            text = tokenizer.decode(response[:-1])
            right += response[-1] == EOS_ID and text.rpartition("=")[2] == str(sum(operands))
            lengths.append(len(response))
    return right / len(lengths), lengths


def report(model: Any, tokenizer: Any, held_back: Sequence[Operands], seed: int) -> None:
    sampled, lengths = evaluate(model, tokenizer, held_back, 8, greedy=False, seed=seed)
    greedy, _ = evaluate(model, tokenizer, held_back, 1, greedy=True, seed=seed)
    spread = torch.tensor(lengths, dtype=torch.float32)
    print(f"sampled pass rate {sampled:.3f} (temperature 1, n = {len(lengths)}, held back)")
    print(f"greedy pass rate  {greedy:.3f} (n = {len(held_back)}, held back)")
    print(
        f"response tokens   min {min(lengths)}, mean {spread.mean():.1f}, "
        f"standard deviation {spread.std():.1f}, max {max(lengths)}"
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the tiny model and the prompts of the running-sums task.")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--prompts", type=Path, required=True, help="directory for train.jsonl and held_back.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2, help="experts that see each token")
    parser.add_argument("--steps", type=int, default=600, help="warm-start steps of 64 demonstrations")
    parser.add_argument("--noise", type=float, default=0.3, help="probability that a demonstrated running sum is wrong")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; other counts round differently")
    parsed = parser.parse_args(argv)
    if parsed.steps < 1:
        parser.error(f"--steps is {parsed.steps}; it must be at least 1")
    if not 1 <= parsed.top_k <= parsed.experts:
        parser.error(f"--top-k is {parsed.top_k}; it must lie in 1 to --experts, which is {parsed.experts}")
    if not 0.0 <= parsed.noise < 1.0:
        parser.error(f"--noise is {parsed.noise}; it must lie in [0, 1)")
    if parsed.threads < 1:
        parser.error(f"--threads is {parsed.threads}; it must be at least 1")
    return parsed


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train, held_back = draw_prompts(random.Random(f"prompts {args.seed}"))
    args.prompts.mkdir(parents=True, exist_ok=True)
    write_prompts(args.prompts / "train.jsonl", train)
    write_prompts(args.prompts / "held_back.jsonl", held_back)

    tokenizer, model = build_tokenizer(), build_model(args.experts, args.top_k)
    pairs = demonstrations(held_back, args.noise, random.Random(f"demonstrations {args.seed}"))
    warm_start(model, tokenizer, pairs, args.steps)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # What is measured is what was saved: the weights after rounding to bf16.
    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    report(saved, tokenizer, held_back, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
