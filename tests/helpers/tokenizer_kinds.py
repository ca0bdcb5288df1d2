"""Tokenizers of every kind that models come with, small enough to be made at once."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PROMPT = "The Eiffel Tower is in the city of"
LINES = [PROMPT, "The Space Needle is in Seattle", "The tower of the city is the tower", "東京は日本", "東京"]
SPECIAL = ["<unk>", "<s>"]
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]


def _fast(tokenizer, **special):
    # What TransformerLens asks a tokenizer for, which it would look for on the hub otherwise.
    special = {"bos_token": "<s>", "name_or_path": "tiny", "add_bos_token": True} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def _byte_level(model, *, trim_offsets):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def single_bytes():
    """GPT-2's scheme without a single merge: every byte is a token."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    return _fast(_byte_level(models.BPE(vocab=vocabulary, merges=[]), trim_offsets=True))


@cache
def byte_level(*, trim_offsets=True):
    """GPT-2's scheme, trained: words with their space in front, and characters in several tokens."""
    tokenizer = _byte_level(models.BPE(), trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return _fast(tokenizer)


@cache
def sentence_piece():
    """Unigram as T5 and others have it: `▁` for a space, one in front of all, bytes for what is unknown."""
    pieces = ["▁The", "▁Eiffel", "▁Tower", "▁is", "▁in", "▁the", "▁city", "▁of", "▁Par", "▁", "is", *"TSao"]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(byte, -20.0) for byte in FALLBACK]
    return _fast(
        _metaspace(models.Unigram([*vocabulary, *((p, -float(i + 1)) for i, p in enumerate(pieces))], 0, True))
    )


@cache
def llama_like():
    """BPE over `▁` with bytes for what is unknown, as Llama 2 and Gemma have it."""
    pieces = ["▁", *"Theis", "▁T", "▁Th", "▁The", "▁i", "▁is"]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *FALLBACK, *pieces])}
    merges = [("▁", "T"), ("▁T", "h"), ("▁Th", "e"), ("▁", "i"), ("▁i", "s")]
    return _fast(_metaspace(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")))


def _metaspace(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@cache
def word_level(**special):
    """Words and nothing else. Control characters vanish, as BERT's do."""
    words = sorted({word for line in LINES for word in line.split()})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer, **special)


@cache
def word_piece():
    """WordPiece as BERT has it: punctuation and ideographs stand by themselves, `##` is in front of what goes on."""
    written = "".join(LINES) + "abcdefghijklmnopqrstuvwxyz.,'\"(-19"
    letters = sorted({c for c in written if not c.isspace()})
    pieces = [*SPECIAL, *letters, *(f"##{c}" for c in letters), "The", "Tower", "city", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return _fast(tokenizer)


@cache
def cjk():
    """Unigram trained on Chinese and Japanese: several characters in a token, and no space in front of any."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Fuse()
    lines = [
        *("东京是日本的首都。", "法国的首都是巴黎，", "埃菲尔铁塔位于巴黎。", "1998年成立于北京"),
        *("東京は日本の首都です。", "パリはフランスの首都です。", "Paris"),
    ]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(lines * 3, trainer)
    return _fast(tokenizer)


ALL_KINDS = [single_bytes, byte_level, sentence_piece, llama_like, word_level]
"""Those that have the words of `LINES`."""
EVERY_KIND = [*ALL_KINDS, word_piece, cjk]
