"""Cases of texts that are asked for the same word or answer."""


def texts_of(words):
    """A text and its word, for every text of each word."""
    return [(text, word) for word, texts in words.items() for text in texts]
