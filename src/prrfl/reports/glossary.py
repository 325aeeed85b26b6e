"""Words of reports that a reader may not know, each explained in a sentence."""

from collections.abc import Iterable, Mapping

DIAGNOSES: Mapping[str, str] = {
    "akiec": "actinic keratosis or Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus, a mole",
    "vasc": "vascular lesion",
}
"""Classes of HAM10000 and the ISIC archive (Tschandl et al., Scientific Data 2018)."""

WORDS: Mapping[str, str] = {
    "95 %": "An interval that holds the true value in 95 of 100 studies like this one. A wide one means few "
    "images, few training runs, or both.",
    "always the most frequent class": "The answer that needs no network: every image gets the class that is "
    "most frequent in the site's training set. A useful score is higher.",
    "AUC": "Area under the ROC curve: how often an image of a class gets a higher probability of it than an "
    "image of another class. 50 % is chance.",
    "calibration error": "Mean distance between how sure a network is and how often it is right, in points.",
    "communication": "Sites send shares of their networks, the server averages them, the sites receive the "
    "result.",
    "deployed": "The network that a method gives to a site for use.",
    "deputy": "The second network of a site. It takes part in communications, so that the personalised "
    "network need not.",
    "macro-F1": "Mean over classes of F1, the harmonic mean of the share of a class's images that is found "
    "and the share of its alarms that is right. A rare class counts as much as a frequent one.",
    "not told apart": "The study found no significant difference. This does not mean that they are equal.",
    "personalised": "The site's own network. No communication changes it.",
    "recall": "The share of a class's images that is classified correctly.",
    "retrogress": "The drop of a network's score at a communication: just before minus just after.",
    "sensitivity": "The share of a class's images whose probability reaches a threshold.",
    "specificity": "The share of other images whose probability stays below the threshold.",
}


def glossary(classes: Iterable[str]) -> dict[str, str]:
    """Return the explained words, with those of the given classes that are known."""
    known = {name: f"{DIAGNOSES[name]}." for name in classes if name in DIAGNOSES}
    return dict(sorted({**WORDS, **known}.items(), key=lambda entry: entry[0].lower()))


def spoken(name: str) -> str:
    """Return a class's name as given, with its diagnosis if it is a known abbreviation."""
    return f"{name} ({DIAGNOSES[name]})" if name in DIAGNOSES else name
