"""How hard a text is to read: words a sentence, and the share of words that are not among the 5,000
most frequent ones of English or in the glossary. The list of frequent words is the vocabulary of
the embedded encoder, whose whole words stand in the order of their frequency.

    python tests/readability.py nbs/lessons/*.ipynb
"""

import re
import sys
from functools import cache
from pathlib import Path

from insight_nb.models.backbone import load_backbone
from notebooks import GLOSSARY, Notebook

ENDINGS = ("'s", "s", "es", "ed", "d", "ing", "ly", "er", "r")  # of a word that is known


@cache
def frequent_words(n=5000):
    "The n most frequent words of letters, as the embedded encoder's tokenizer lists them."
    vocabulary = load_backbone().tokenizer.get_vocab()
    words = [w for w in sorted(vocabulary, key=vocabulary.get) if re.fullmatch(r"[a-z]+", w)]
    return frozenset([w for w in words if len(w) > 1 or w in "ai"][:n])


@cache
def glossary_words():
    "Every word of the glossary's English terms."
    text = "\n".join(c.source for c in Notebook(GLOSSARY).cells if c.kind == "markdown")
    terms = re.findall(r"^\|([^|]+)\|", text, re.M) + re.findall(r"\*\*([^*]+)\*\*", text)
    return frozenset(re.findall(r"[a-z]+", " ".join(terms).lower()))


def prose(text):
    "Markdown without code, links' targets, headings, tables, formulas and marks."
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]*`", " x ", text, flags=re.S)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]+>|https?://\S+", " ", text)
    return "\n".join(line for line in text.split("\n") if not re.match(r"\s*(#|\||!\[)", line))


def sentences(text):
    "Ends of lines end a sentence in lists and between paragraphs."
    parts = re.split(r"(?<=[.!?:;])[)\"”*_]*\s+|\n\s*\n|\n\s*[-*>\d]+[.)]?\s", prose(text))
    found = [re.findall(r"[A-Za-z]+(?:['’][a-z]+)?", part) for part in parts]
    return [words for words in found if len(words) > 2]


def is_known(word):
    word = word.lower().replace("’", "'")
    known = frequent_words() | glossary_words()
    stems = [word] + [word.removesuffix(e) for e in ENDINGS if word.endswith(e)]
    stems += [s + "e" for s in stems[1:]] + [s[:-1] for s in stems[1:] if s[-2:-1] == s[-1:]]
    stems += [s[:-1] + "y" for s in stems if s.endswith("i")]
    parts = word.split("'")[0]
    return any(s in known for s in [*stems, parts]) or len(word) == 1


def readability(text):
    "Mean words a sentence, share of sentences over 25 words, share of rare words."
    found = sentences(text)
    words = [w for s in found for w in s]
    if not words:
        return 0.0, 0.0, 0.0
    long = sum(len(s) > 25 for s in found) / len(found)
    return len(words) / len(found), long, sum(not is_known(w) for w in words) / len(words)


LINE = "{:.1f} words a sentence, {:.0%} of the sentences long, {:.1%} of the words rare"


def of_notebook(path):
    return readability("\n\n".join(c.source for c in Notebook(path).cells if c.kind == "markdown"))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        text = Path(name)
        found = of_notebook(text) if text.suffix == ".ipynb" else readability(text.read_text())
        print(text.name, LINE.format(*found))
