"""Other ways to state the facts of a document: some for training, others for evaluation alone.

No wording holds a word that gives a fact away, or another value. Each evaluation wording has a word that no training
wording has, so a reconstructor that reads it has not learnt it by heart.
"""

# Mostly of the world's own tokens, to be as short as the statements: a batch is padded to its longest text.
TRAINING: dict[str, tuple[str, ...]] = {
    "hero": ("hero: {}.", "we know {}.", "like {}.", "{} is in it.", "Look for {} here."),
    "place": ("place: {}.", "near the {}.", "in the {}.", "over in the {}.", "Picture the {}."),
    "weather": ("weather: {}.", "now {}.", "it is {} about.", "{} all over.", "The sky: {}."),
    "job": ("job: {}.", "needs a {}.", "like a {}.", "as a {}.", "Hired as a {}."),
    "mood": ("mood: {}.", "feels {}.", "felt {}.", "a {} one.", "They sound {}."),
    "animal": ("animal: {}.", "with a {}.", "near a {}.", "a {} too.", "Spot the {}."),
    "object": ("object: {}.", "holds a {}.", "keeps the {}.", "a {} there.", "Watch the {}."),
    "time": ("time: {}.", "about {}.", "near {}.", "then {}.", "By now, {}."),
    "genre": ("genre: {}.", "as a {}.", "like a {}.", "all of a {}.", "Kind of text: {}."),
    "tense": ("tense: {}.", "in the {}.", "{}, then.", "all {}.", "Seen from the {}."),
    "ending": ("ends: {}.", "then the {}.", "the {} ends it.", "the {} comes after.", "To finish, the {}."),
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
