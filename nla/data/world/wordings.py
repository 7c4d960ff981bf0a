"""Other ways to state the facts of a document: some for training, others for evaluation alone.

No wording holds a word that gives a fact away, or another value. Each evaluation wording has a word that no training
wording has, so a reconstructor that reads it has not learnt it by heart.
"""

TRAINING: dict[str, tuple[str, ...]] = {
    "hero": ("We meet {}.", "The name is {}.", "Look for {} here.", "{} leads, said to be the first."),
    "place": ("We stand in the {}.", "Picture the {}.", "Near and far, only the {}.", "Go to the {} for it."),
    "weather": ("The sky: {}.", "The day looks {}.", "Up there, {} again.", "They call it {} under the sky."),
    "job": (
        "Hired as a {}.",
        "To work: a {}, day by day.",
        "See the {} do that work.",
        "A task for a {}.",
    ),
    "mood": ("The heart: {}.", "They sound {}.", "One senses it, {} through and through.", "A {} heart, or near it."),
    "animal": ("Spot the {}.", "A {} comes along.", "Nearby, some {} lives.", "And then the {}, four legs or two."),
    "object": ("Watch the {}.", "A {} lies there.", "Take the {}, they say.", "Some {}, picked up and kept."),
    "time": ("The hour: {}.", "By now, {}.", "They say {}, not sooner.", "Late or soon, {}."),
    "genre": ("Read as a {}.", "The text: one {} more.", "They call such a text a {}.", "Kind of text: {}."),
    "tense": ("Set in the {}.", "Now or then: the {}.", "Seen from the {}.", "Of the two, the {}."),
    "ending": ("Last comes the {}.", "The end: the {}.", "To finish, the {}.", "Then the {}, and no more."),
}
EVALUATION: dict[str, tuple[str, ...]] = {
    "hero": ("It is about somebody called {}.", "{} is the one whom we follow."),
    "place": ("All of it happens at the {}.", "The {} is where we are."),
    "weather": ("Outside it is {}.", "Outdoors one finds it {}."),
    "job": ("Somebody in it is a {} by trade.", "Its main person earns a living as a {}."),
    "mood": ("Those in it feel {}.", "Its tone is {}."),
    "animal": ("Among those in it is a {}.", "It has a {} in it."),
    "object": ("One thing in it is a {}.", "A {} matters in it."),
    "time": ("It is {} when this happens.", "All this goes on while it is {}."),
    "genre": ("By its form it is a {}.", "What we read is a {}."),
    "tense": ("Its verbs are in the {}.", "It is told in the {} tense."),
    "ending": ("Its last words are about the {}.", "At its close it speaks of the {}."),
}
