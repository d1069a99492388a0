"""Trains small tokenizers with Hugging Face's `tokenizers`, one with the pipeline of each family whose own file cannot be
had, and records what the library makes of some texts.

usage: make_tokenizer_fixtures.py TEXT OUTPUT_FOLDER
"""
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
TEXTS = ["", " ", "Hello  world", "it's 2025, and\nI'LL pay $1,234.56", "<s>ab</s> c", " <s> x", "naïve 日本語 🦙 \u0301",
         "a\tb\n\n\nc   d\r\n", "<table>x</table>\n\n", "<|begin_of_text|>the the", "def f(x):\n    return x ** 2\n",
         "▁literal ▁▁ marks", "\u00a0\u3000x", "Ünïcödé ﬁne Å"]


def template(begin, id):
    return processors.TemplateProcessing(single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, id)])


def finish(tokenizer, special, extra=()):
    """`tokenizer` with special tokens first, then its bytes where it falls back to them, then what was trained."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    trained = sorted(model["vocab"], key=model["vocab"].get)
    tokens = list(special)
    if model["byte_fallback"]:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [token for token in extra if token not in tokens]
    tokens += [token for token in trained if token not in tokens]
    model["vocab"] = {token: id for id, token in enumerate(tokens)}
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    content["added_tokens"] = [dict(id=tokens.index(token), content=token, special=token in special, **plain)
                               for token in list(special) + list(extra)]
    return Tokenizer.from_str(json.dumps(content))


def trained(model, pre_tokenizer, normalizer, lines, size, alphabet=()):
    tokenizer = Tokenizer(model)
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, show_progress=False,
                                                             initial_alphabet=list(alphabet)))
    return tokenizer


def characters():
    return models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")


def spaces(strips):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strips else []))


def gemma(lines):
    # Trained on words, as the family's own is, whose tokens begin with a space or have none.
    words = pre_tokenizers.Metaspace("▁", "never", True)
    made = trained(characters(), words, normalizers.Replace(" ", "▁"), [line[:200] for line in lines], 700)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = spaces(False)
    # And one that reaches over a space: a place that must not be cut.
    content = json.loads(made.to_str())
    content["model"]["vocab"]["▁of▁the"] = len(content["model"]["vocab"])
    content["model"]["merges"].append(["▁of", "▁the"])
    made = finish(Tokenizer.from_str(json.dumps(content)),
                  ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
                  ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "</table>"])
    made.post_processor = template("<bos>", 2)
    return made


def llama2(lines):
    made = trained(characters(), pre_tokenizers.Metaspace("▁", "always", True), None, lines, 500)
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = spaces(True)
    made = finish(made, ["<unk>", "<s>", "</s>"])
    made.post_processor = template("<s>", 1)
    # As the first files of the family have it: this one is looked for in normalised text.
    content = json.loads(made.to_str())
    content["added_tokens"][2]["normalized"] = True
    return Tokenizer.from_str(json.dumps(content))


def mistral(lines, splits=False):
    made = trained(characters(), pre_tokenizers.Metaspace("▁", "always", True), None, lines, 500)
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always" if splits else "first", splits)
    made.decoder = spaces(True)
    made = finish(made, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    made.post_processor = template("<s>", 1)
    return made


def llama3(lines):
    pieces = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K), "isolated"),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = trained(models.BPE(ignore_merges=True), pieces, None, lines, 700, pre_tokenizers.ByteLevel.alphabet())
    made.decoder = decoders.ByteLevel()
    # Whole words that no merges make, which `ignore_merges` is for.
    made = finish(made, [], [])
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    for word in ["Ġphilosophers", "Ġcommonwealth", "Shakespeare", "Ġ12"]:
        vocabulary.setdefault(word, len(vocabulary))
    made = Tokenizer.from_str(json.dumps(content))
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in
                             ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]])
    begin = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                               template("<|begin_of_text|>", begin)])
    return made


def smollm(lines, digits=True):
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made = trained(models.BPE(), pre_tokenizers.Sequence(steps + [regex]) if digits else regex, None, lines, 600,
                   pre_tokenizers.ByteLevel.alphabet())
    made.decoder = decoders.ByteLevel()
    return finish(made, ["<|endoftext|>"])


def main():
    text, folder = sys.argv[1:]
    with open(text, encoding="utf-8") as file:
        lines = [line for line in file.read().split("\n") if line][:6000]
    kinds = {"gemma": gemma(lines), "llama2": llama2(lines), "mistral": mistral(lines), "metaspace": mistral(lines, True),
             "llama3": llama3(lines), "smollm": smollm(lines), "gpt2": smollm(lines, False)}
    expected = {}
    for name, tokenizer in kinds.items():
        os.makedirs(f"{folder}/{name}", exist_ok=True)
        content = json.loads(tokenizer.to_str())
        with open(f"{folder}/{name}/tokenizer.json", "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
        expected[name] = [[tokenizer.encode(text).ids, tokenizer.encode(text, add_special_tokens=False).ids]
                          for text in TEXTS]
    with open(f"{folder}/expected.json", "w", encoding="utf-8") as file:
        json.dump({"texts": TEXTS, "ids": expected}, file, ensure_ascii=True, separators=(",", ":"))


main()
