"""Documents of differing length, each recognisable."""

from __future__ import annotations


def lines(count: int) -> list[str]:
    return [
        f"第{number}篇：" + "今天天气不错，我们去公园走走。" * (number % 7) + f"完{number}" for number in range(count)
    ]
