"""streamtrain faq: a topic in, the section of the page on it out."""

from __future__ import annotations


def command(topic: str | None = None, /) -> None:
    """Explain TOPIC, which an error names, or list the topics.

    Parameters
    ----------
    topic
        As an error message gives it, after "help: streamtrain faq".
    """
    from streamtrain.faq import faq_text

    print(faq_text(topic))
