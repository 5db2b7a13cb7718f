"""Judges that compare answers two at a time, through alpaca_eval: any OpenAI-compatible endpoint, or a model here."""

from .judge import Judge, JudgeError, read_judge

__all__ = ["Judge", "JudgeError", "judge_items", "read_judge", "summarise"]


def __getattr__(name: str):
    """Import what needs alpaca_eval when it is asked for."""
    if name == "judge_items":
        from .judging import judge_items

        return judge_items
    if name == "summarise":
        from .summary import summarise

        return summarise
    raise AttributeError(name)
