"""Make a model and prompts of the shape that people bring: 30 layers, 32,000 tokens, a chat template, LaTeX references.

    python examples/first-hour/make_model.py --out runs/first-hour-model

Writes a Qwen3-MoE of 30 layers (12 million parameters; a real one is wider, not of another shape), a byte-level BPE
tokenizer trained on the documentation that comes with the installed packages, train.jsonl (200 chat prompts of 100 to
400 tokens) and held_back.jsonl (40). The questions are of 24 facts whose answers are LaTeX. The model is trained on
demonstrations of which `--noise` are wrong, so that it answers rightly about half of the time and a group of samples
has something to teach.
"""

import argparse
import importlib.metadata
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen3MoeConfig

VOCABULARY: Final = 32_000
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM: Final = (
    "You are a careful assistant for mathematics. Read the whole question, leave out what does not matter, and give "
    "the final answer, and nothing after it, inside \\boxed{}. Answers are exact: write fractions, no decimals."
)
FACTS: Final = (
    ("the sine of 30 degrees", r"\frac{1}{2}"),
    ("the cosine of 30 degrees", r"\frac{\sqrt{3}}{2}"),
    ("the tangent of 60 degrees", r"\sqrt{3}"),
    ("the sine of 45 degrees", r"\frac{\sqrt{2}}{2}"),
    ("the length of the diagonal of a square of side 3", r"3\sqrt{2}"),
    ("the area of a circle of radius 1", r"\pi"),
    ("the circumference of a circle of radius 3", r"6\pi"),
    ("the volume of a ball of radius 3", r"36\pi"),
    ("the derivative of x squared plus 3x", "2x+3"),
    ("the derivative of the sine of x", r"\cos x"),
    ("an antiderivative of 2x that is 1 at 0", "x^2+1"),
    ("the set of solutions of x squared = 4", r"\{-2,2\}"),
    ("the interval on which x squared is at most 1", "[-1,1]"),
    ("the domain of the logarithm", r"(0,\infty)"),
    ("the point where y = x and y = 2 - x meet", "(1,1)"),
    ("the square of 1 + i", "2i"),
    ("the product of 2 + i and 2 - i", "5"),
    ("the number of seconds in an hour", "3,600"),
    ("one quarter in percent", r"25\%"),
    ("the number of diagonals of a hexagon", "9"),
    ("the eleventh prime number", "31"),
    ("the value of 2 to the tenth", "1024"),
    ("the sum of the angles of a triangle, in degrees", r"180^\circ"),
    ("two and a half as a mixed number", r"2\frac{1}{2}"),
)
ASIDES: Final = (
    "A class of {a} pupils visits a museum where {b} pictures of geometric figures hang in {c} rooms.",
    "On the way they count {a} bicycles, {b} cars and {c} lorries, and one of them writes the figures down.",
    "The teacher has brought {a} pencils and {b} sheets of paper, which is {c} more than last year.",
    "In the garden behind the house stand {a} apple trees; {b} of them were planted {c} years ago.",
    "The lift stops on floor {a}, then on floor {b}, and nobody gets in before floor {c}.",
    "A train leaves at {a} minutes past the hour and meets another one, {b} minutes late, after {c} kilometres.",
    "Somebody remarks that {a} times {b} is not {c}, and that this has nothing to do with what is asked.",
    "The guide explains that the building was begun in 18{a} and finished {b} years later by {c} workers.",
)
ASKED: Final = ("What is {fact}?", "Give {fact}.", "State {fact}.", "Tell me {fact}, please.", "Which is {fact}?")


def documentation(limit: int = 6_000_000) -> Iterator[str]:
    """Texts of the installed packages, at most `limit` characters of them, in the order of their names."""
    for distribution in sorted(importlib.metadata.distributions(), key=lambda found: found.name.lower()):
        text = distribution.metadata.get_payload() or distribution.metadata.get("Description") or ""
        yield str(text)
        for file in distribution.files or ():
            if file.suffix == ".py" and limit > 0:
                try:
                    source = Path(str(distribution.locate_file(file))).read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                limit -= len(source)
                yield source


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 32,000 tokens with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    questions = [SYSTEM, *ASIDES, *ASKED, *(f"{fact} {answer}" for fact, answer in FACTS)]
    tokenizer.train_from_iterator([*documentation(), *questions * 20], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=1024,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A freshly initialised Qwen3-MoE in float32."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def question(rng: random.Random, fact: str, asides: int) -> list[dict[str, str]]:
    """Chat messages: the question after `asides` sentences that do not matter."""
    told = [
        rng.choice(ASIDES).format(a=rng.randint(10, 99), b=rng.randint(2, 99), c=rng.randint(2, 99))
        for _ in range(asides)
    ]
    asked = rng.choice(ASKED).format(fact=fact)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": " ".join([*told, asked])}]


def write_prompts(path: Path, rng: random.Random, count: int) -> None:
    """Rows of chat messages with a LaTeX reference, and two further columns, as data sets have them."""
    rows = []
    for number in range(count):
        fact, answer = FACTS[number % len(FACTS)]
        rows.append(
            {
                "messages": question(rng, fact, rng.randint(1, 12)),
                "verifier": "math_verify",
                "reference": answer,
                "subject": fact,
                "level": 1 + number % 5,
            }
        )
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def collate(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels`, each [batch, tokens]; labels are -100 off the response."""
    rows = [(tokenizer.encode(prompt), tokenizer.encode(response)) for prompt, response in pairs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    mask = torch.zeros_like(input_ids)
    for index, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[index, :end] = torch.tensor(prompt + response)
        labels[index, len(prompt) : end] = torch.tensor(response)
        mask[index, :end] = 1
    return input_ids, mask, labels


def warm_start(
    model: Any, tokenizer: Any, rng: random.Random, steps: int, noise: float, *, batch: int, peak: float
) -> None:
    """Maximum likelihood on noisy demonstrations, in place; prints the loss in nats a response token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 20, 0.1 + 0.9 * (1 - step / steps))
        pairs = []
        for _ in range(batch):
            fact, answer = rng.choice(FACTS)
            if rng.random() < noise:
                answer = rng.choice(FACTS)[1]
            messages = question(rng, fact, rng.choice((0, 1, 2, 4, 8, 12) if step > steps // 2 else (0, 0, 1, 2)))
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            pairs.append((prompt, f"The answer is \\boxed{{{answer}}}<|im_end|>"))
        input_ids, mask, labels = collate(tokenizer, pairs)
        hidden = model.model(input_ids=input_ids, attention_mask=mask).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        logits = model.lm_head(hidden[wanted != -100])
        loss = torch.nn.functional.cross_entropy(logits, wanted[wanted != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.monotonic() - started:6.1f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a chat model of 30 layers and 32,000 tokens, and its prompts.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="warm-start steps")
    parser.add_argument("--batch", type=int, default=16, help="demonstrations a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.4, help="share of the demonstrations with another answer")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(tokenizer):,} tokens")
    warm_start(model, tokenizer, rng, args.steps, args.noise, batch=args.batch, peak=args.learning_rate)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    write_prompts(args.out / "train.jsonl", rng, 200)
    write_prompts(args.out / "held_back.jsonl", rng, 40)
    return 0


if __name__ == "__main__":
    sys.exit(main())
