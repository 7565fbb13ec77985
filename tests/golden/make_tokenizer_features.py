"""What the vectors of make_tokenizer_styles.py leave out, answered by the Hugging Face `tokenizers` library.

    python make_tokenizer_features.py --styles tokenizers

tokenizers/STYLE/decode.jsonl: {"ids", "decoded", "decoded_skip"}: random ids, most of them no valid text.
tokenizers/features.jsonl: one small tokenizer per feature: {"name", "tokenizer", "cases": [{"text", "ids", "ids_special"}]}.
"""
from __future__ import annotations
import argparse, json, pathlib, random
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = ["", " ", "a", "aa-bb", "--aa--bb--", "aa bb  cc", " aa  bb ", "12 345a6", "x²½٣", "ab<t>ab", "ab <t> ab", "ab  <t>  ab",
         "<t><t>", " <t>", "<t> ", "a<t>b", "foo", "foofoo", " foo ", "foo,foo", "FOO", "ﬁne ﬀ ①", "e\u0301e\u0300", "\u0344\u0345x",
         "tab\tnew\nline", "aabb", "bbaa", "日本a本", "\u00a0aa\u3000bb", "a-", "-a", "-", "\u180ea", "a_b c_d", "don't we'll", "▁a ▁b", "\r\n\r\n", "\u0e81\u0eba\u0eb8a\u0eba\u0300", "\U0001e2aea\U0001e2ae\u0316"]


def base(**options) -> Tokenizer:
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.train_from_iterator([t for t in TEXTS if "日" not in t] * 3 + ["aa bb aa", "a-b-a", "1 2 34", "aa▁bb▁"] * 9, trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>"], show_progress=False, max_token_length=6))
    model = json.loads(learner.to_str())["model"]
    return Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], **{"unk_token": "<unk>", **options}))


def made() -> dict[str, Tokenizer]:
    out = {}

    def add(name: str, normalizer=None, pre=None, post=None, tokens=(), **options):
        t = base(**options)
        if normalizer is not None: t.normalizer = normalizer
        if pre is not None: t.pre_tokenizer = pre
        if tokens: t.add_tokens(list(tokens))
        if post is not None: t.post_processor = post(t)
        out[name] = t

    add("plain")
    add("fuse_unk", fuse_unk=True)
    add("no_unk", unk_token=None)
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        add(f"split_string_{behavior}", pre=pre_tokenizers.Split("-", behavior))
        add(f"split_regex_{behavior}", pre=pre_tokenizers.Split(Regex("[a-z]+"), behavior))
        add(f"split_invert_{behavior}", pre=pre_tokenizers.Split(Regex("[a-z]+"), behavior, invert=True))
        add(f"split_space_{behavior}", pre=pre_tokenizers.Split(Regex(r"\s"), behavior))
        add(f"split_not_space_{behavior}", pre=pre_tokenizers.Split(Regex(r"\S+|\w"), behavior))
    add("split_word", pre=pre_tokenizers.Split(Regex(r"\w+"), "isolated"))
    add("digits", pre=pre_tokenizers.Digits(individual_digits=False))
    add("digits_each", pre=pre_tokenizers.Digits(individual_digits=True))
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            add(f"metaspace_{scheme}_{split}", pre=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split), tokens=["<t>"])
    add("byte_level_prefix", pre=pre_tokenizers.ByteLevel(add_prefix_space=True))
    add("sequence", pre=pre_tokenizers.Sequence([pre_tokenizers.Split("-", "removed"), pre_tokenizers.Digits(True), pre_tokenizers.Metaspace(prepend_scheme="first")]))
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        add(form.lower(), normalizer=getattr(normalizers, form)())
    add("strip", normalizer=normalizers.Strip())
    add("strip_left", normalizer=normalizers.Strip(left=True, right=False))
    add("strip_right", normalizer=normalizers.Strip(left=False, right=True))
    add("replace_regex", normalizer=normalizers.Replace(Regex(r"\s+"), "-"))
    add("prepend", normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), tokens=["<t>"])
    for name in ("lstrip", "rstrip", "single_word", "normalized"):
        add(f"token_{name}", tokens=[AddedToken("<t>", normalized=False, **{name: True} if name != "normalized" else {}),
                                     AddedToken("foo", **{"normalized": False, **{name: True}})],
            normalizer=normalizers.Replace("FOO", "foo"))
    add("token_overlap", tokens=[AddedToken("aa", normalized=False), AddedToken("aab", normalized=False), AddedToken("-", normalized=True)])
    add("template", tokens=[AddedToken("<t>", special=True)],
        post=lambda t: processors.TemplateProcessing(single="<t> $A <unk>", special_tokens=[("<t>", t.token_to_id("<t>")), ("<unk>", 0)]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--styles", type=pathlib.Path, required=True)
    args = parser.parse_args()
    with open(args.styles / "features.jsonl", "w") as out:
        for name, tokenizer in made().items():
            cases = [dict(text=t, ids=tokenizer.encode(t, add_special_tokens=False).ids, ids_special=tokenizer.encode(t).ids) for t in TEXTS]
            out.write(json.dumps(dict(name=name, tokenizer=json.loads(tokenizer.to_str()), cases=cases)) + "\n")
    for folder in sorted(p.parent for p in args.styles.glob("*/tokenizer.json")):
        rng = random.Random(7)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        with open(folder / "decode.jsonl", "w") as out:
            for _ in range(200):
                ids = [rng.randrange(tokenizer.get_vocab_size() + 3) if rng.random() < 0.4 else rng.randrange(300) for _ in range(rng.randrange(1, 25))]
                out.write(json.dumps(dict(ids=ids, decoded=tokenizer.decode(ids, skip_special_tokens=False),
                                          decoded_skip=tokenizer.decode(ids, skip_special_tokens=True))) + "\n")


if __name__ == "__main__":
    main()
