"""Questions about one network or several, and the one shell that asks them: a bound with a claim, and a witness below it.

A question is one file: what is asked (`Question`), the facts it needs, and the closed form that makes the answer of them.
"""

from lipverify.questions.asking import ask
from lipverify.questions.question import Answer, Found, Question, Subject
from lipverify.questions.regions import InputBox

__all__ = ["Answer", "Found", "InputBox", "Question", "Subject", "ask"]
