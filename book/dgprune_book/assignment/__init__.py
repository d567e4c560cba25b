"""The project assignment: score a class's own criteria by the book's protocol.

    python -m dgprune_book.assignment --template my_score.py
    python -m dgprune_book.assignment my_score.py

A submission is one Python file with a function ``score(model, graph, domains)``, see
``template.py``. The parts, each in a file:

    contract -> packing -> guard -> child -> runner -> protocol -> board

A submission runs in processes of its own that are never given the unseen domain, and gives back
scores and nothing else. All that follows (pruning, fine-tuning, measuring) happens elsewhere, with
the functions behind the book's figures.

What this package is *not*: a sandbox. It stops what happens by mistake and notices what is usual;
who is determined can get around it (``guard.py`` says how).
"""
