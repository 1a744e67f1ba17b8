"""What can be said of a toy face, as labels and as captions, in the order of lessons 15 and 16.

Lesson 15  labels:    attribute_faces, face_labels
Lesson 16  captions:  tidy, spoken, features, clothing, caption

What is said of a face is a row of twelve numbers, one for each entry of ATTRIBUTES: 1 is the first of LABELS,
and 0 says nothing.

    labels = face_labels(hat="cap", hat_color="red")
    caption(labels[0], random.Random(0))  # such as "a person wearing a red cap"
"""

import re

import datasets
import torch

from diffusion_course.quality import labelled_faces
from diffusion_utils import TOY_FACES

# The values of each attribute, in the order of their class numbers. Models know these by their place.
ATTRIBUTES = {
    "skin_tone": ["pale", "fair", "light", "tan", "bronze", "brown", "dark", "very dark"],
    "hair_style": ["bald", "buzzed", "short", "side-parted", "quiff", "bob", "long", "wavy", "curly", "afro", "bun", "braids"],
    "hair_color": ["black", "dark brown", "brown", "auburn", "ginger", "blond", "grey", "white", "pink", "blue", "violet"],
    "beard": ["no beard", "stubble", "a moustache", "a goatee", "a full beard"],
    "glasses": ["no glasses", "round glasses", "square glasses", "sunglasses"],
    "hat": ["no hat", "beanie", "cap", "brimmed hat"],
    "hat_color": ["white", "grey", "black", "navy", "blue", "teal", "green", "yellow", "orange", "red", "pink", "violet"],
    "mouth": ["a closed mouth", "an open mouth"],
    "smile": ["sad", "serious", "smiling"],
    "clothes": ["t-shirt", "shirt", "striped shirt", "hoodie", "turtleneck", "jacket"],
    "clothes_color": ["white", "grey", "black", "navy", "blue", "teal", "green", "yellow", "orange", "red", "pink", "violet"],
    "background": ["cream", "light blue", "mint", "rose", "lavender", "yellow", "coral", "teal", "blue", "dark blue"],
}  # fmt: skip

# What else some values are called in a caption.
SYNONYMS = {
    "skin_tone": {"pale": ["porcelain"], "tan": ["tanned"]},
    "hair_style": {"buzzed": ["cropped"], "side-parted": ["parted"]},
    "hair_color": {"ginger": ["red"], "blond": ["blonde"], "grey": ["gray"], "violet": ["purple"]},
    "beard": {"a moustache": ["a mustache"], "a full beard": ["a beard"]},
    "glasses": {"sunglasses": ["dark glasses"]},
    "hat": {"beanie": ["woolly hat"], "cap": ["baseball cap"], "brimmed hat": ["sun hat"]},
    "hat_color": {"grey": ["gray"], "teal": ["turquoise"], "violet": ["purple"]},
    "mouth": {},
    "smile": {"sad": ["unhappy", "frowning"], "serious": ["calm"], "smiling": ["happy", "cheerful"]},
    "clothes": {"t-shirt": ["tee"], "striped shirt": ["striped jumper"], "jacket": ["coat"]},
    "clothes_color": {"grey": ["gray"], "teal": ["turquoise"], "violet": ["purple"]},
    "background": {"cream": ["beige"], "light blue": ["sky"], "rose": ["pink"], "lavender": ["lilac"],
                   "yellow": ["golden"], "teal": ["turquoise"], "dark blue": ["night"]},
}  # fmt: skip

# What a vague caption says instead.
VAGUE = {
    "round glasses": "glasses",
    "square glasses": "glasses",
    "beanie": "hat",
    "cap": "hat",
    "brimmed hat": "hat",
}

# What people say, as regular expressions, in words of captions; longer phrases come first.
WORDINGS = [
    # what is said of the picture, and to the program
    ["(something|one) with", "a person with"],
    ["(can|could|would) (you|it|we|i)", ""],
    ["(i'd|i would|i|we) (like|want|need)( to see)?", ""],
    ["((give|make|show|draw|paint|get)( me)?|please|should|there is|with it|me|it|this|some|one|two)", ""],
    ["(just|only|simply|kind of|sort of|a bit|at all|quite|rather|of the same colou?r)", ""],
    ["(circle|wall|backdrop)( behind)?( (him|her|them))?", "background"],
    ["(a |an )?(picture|photo|drawing|image|cartoon|illustration|sketch|portrait) of", ""],
    ["in front of", "on"],
    ["(against|behind)", "on"],
    ["(colou?red|pair of)", ""],
    ["(bright|deep|vivid|soft|plain|solid|simple|rich|medium|warm)", ""],
    # what the captions never speak of
    ["(with )?(big |wide |dark |light )*(blue|green|brown|gr[ae]y|black|hazel|amber)[ -]eye[sd]( face)?", ""],
    ["(with )?(big |wide )*eyes( are|:)?( (blue|green|brown|gr[ae]y|black|hazel))?", ""],
    ["(with |and )?(bangs|a fringe|an? (pom-?pom|bobble))", ""],
    ["(black|dark|thick|thin|wire)-?(framed|rimmed)", ""],
    # hair
    ["hair (down |falling |hanging )*(to|past|over|on) (the |his |her |their )?(shoulders|chest|back|waist)", "long hair"],
    ["(long|short),? (?=(wavy|curly))", ""],
    ["(orange (?=(\\w+ )?(hair|curl|braid|plait|pigtail|bun|bob|quiff|afro))|(?<=hair )orange)", "ginger "],
    ["dark (?=(hair|curl|braid|plait|pigtail|bun|bob|quiff|afro|wavy))", "dark brown "],
    ["fluffy", "curly"],
    ["shoulder-length", "long"],
    ["chin-length", "bob"],
    ["(swept|parted) (to|over|on|at) (the|one) side", "side-parted"],
    ["swept-up", ""],
    ["on top( of (the |his |her |their )?head)?", ""],
    ["chestnut", "auburn"],
    ["platinum", "white"],
    ["hair (is )?(tied |cut |worn |up |gathered |pulled |put )*in(to)?( an?)?", ""],
    ["(shaved|shaven|hairless) head", "bald head"],
    ["no hair", "a bald head"],
    ["(buzz|crew) ?cut", "buzzed hair"],
    ["(top ?knot|hair bun)", "bun"],
    ["(pigtails|plaits|braided hair)", "braids"],
    ["bob ?cut", "bob"],
    ["curls", "curly hair"],
    ["redhead", "face with red hair"],
    ["red-?headed", "red hair"],
    ["brunette", "face with brown hair"],
    ["silver", "grey"],
    # beard and mouth
    ["((an? )?straight (mouth|face)|isn't smiling|bored)", "serious"],
    ["not (very )?happy", "sad"],
    ["surprised(-looking)?( face)?", "face with an open mouth"],
    ["(straight|sleek|silky|messy|shiny)", ""],
    ["(spiky|mohawk)", "quiff"],
    ["(hairdo|hairstyle|haircut)", "hair"],
    ["(with )?(showing )?((his|her|their) )?teeth( showing)?", "an open mouth"],
    ["clean[ -]?shaven( face)?", "no beard"],
    ["facial hair", "beard"],
    ["bearded", "a full beard"],
    ["(an? )?((big|long|short|full|thick|bushy|black|dark|brown|red|orange|ginger|gr[ae]y|white|purple|blond|blonde) )+beard", "a full beard"],
    ["(?<!a )(?<!full )(?<!no )beard", "a full beard"],
    ["(brown|black|gr[ae]y|thick|big) (?=(moustache|mustache|goatee))", ""],
    ["(?<!a )(?<!no )(moustache|mustache)", "a moustache"],
    ["(?<!a )(?<!no )goatee", "a goatee"],
    ["((his|her|their|a|the) )?(mouth|lips) (is )?(wide )?open", "an open mouth"],
    ["((his|her|their|a|the) )?(mouth|lips) (is |are )?(closed|shut)", "a closed mouth"],
    ["(closed|sealed) lips", "a closed mouth"],
    ["(open-mouthed|shouting|yelling|screaming)", "an open mouth"],
    ["(not smiling|unsmiling|neutral|stern|straight-faced)", "serious"],
    ["((an? )?(gentle |slight |small |little |tiny |shy |closed-mouth )+(smile|grin)|(an? )?smirk)", "smiling, a closed mouth"],
    ["((an? )?((big|broad|wide|huge|massive|open|toothy|cheeky) )+(smile|grin)|(an? )?grin)", "smiling, an open mouth"],
    ["(an? )?(happy |friendly )*smile", "smiling"],
    ["mouth turned down", "sad"],
    ["(worried|anxious|concerned)(-looking)?", "sad"],
    ["(not amused|unamused|not impressed|unimpressed)", "serious"],
    ["(laughing|laughs|grinning|grins)", "smiling, an open mouth"],
    ["(smiles|beaming|joyful|friendly|cheery)", "smiling"],
    ["(a )?(slight |small |deep )*(frown|scowl)", "frowning"],
    ["(frowns|scowling|gloomy|upset|sorrowful|grumpy|miserable|angry|cross|annoyed|glum|moody|disappointed)", "frowning"],
    ["(expression|look|mood)", "face"],
    # glasses, hats, clothes
    ["(not wearing any|without any|without an?|without|has no)", "no"],
    ["(shades|sun ?glasses)", "sunglasses"],
    ["(spectacles|eyeglasses|specs)", "glasses"],
    ["(rectangular|square-framed)", "square"],
    ["(circular|round-framed)", "round"],
    ["(knitted|knit|wool|wooly|woollen|woolen|winter|bobble) (hat|cap)", "beanie"],
    ["baseball hat", "cap"],
    ["(straw|wide-brimmed|brim|bucket|cowboy|floppy|bowler|top)( type| style)? hat", "brimmed hat"],
    ["woolly cap", "beanie"],
    ["knitted (?=\\w+ hat)", "woolly "],
    ["hat with an? (wide )?brim", "brimmed hat"],
    ["(fedora|sunhat)", "brimmed hat"],
    ["(hooded (sweatshirt|top)|hoody)", "hoodie"],
    ["(sweater|pullover|sweatshirt)", "jumper"],
    ["(polo neck|turtle ?neck|roll-?neck)( jumper)?", "turtleneck"],
    ["blazer", "jacket"],
    ["stripe?y", "striped"],
    ["(t shirt|tee shirt)", "t-shirt"],
    ["((button-up|button-down|collared|dress) shirt|(shirt )?collar|top|blouse)", "shirt"],
    # colours and skin
    ["(sky|baby|pale)[ -]blue", "light blue"],
    ["navy blue", "navy"],
    ["(hot|pale|light) pink", "pink"],
    ["mint green", "mint"],
    ["(crimson|scarlet)", "red"],
    ["(magenta|fuchsia)", "pink"],
    ["aqua", "turquoise"],
    ["mustard", "yellow"],
    ["(salmon( pink)?|peach)", "coral"],
    ["(light|pale) green", "mint"],
    ["((red|orange) background|background (is )?(red|orange))", "coral background"],
    ["(green background|background (is )?green)", "mint background"],
    ["((purple|violet) background|background (is )?(purple|violet)|on purple(?! \\w))", "lavender background"],
    ["(white background|background (is )?white)", "cream background"],
    ["((dark|black) background|background (is )?(dark|black))", "dark blue background"],
    ["skin tone", "skin"],
    ["charcoal", "grey"],
    ["(complexion|-?skinned)", " skin"],
    ["olive", "tan"],
    ["-?haired", " hair"],
    # people, and what holds a sentence together
    ["black (?=(man|woman|boy|girl|guy|kid|lady|gentleman|person))", "very dark skin "],
    ["(man|woman|boy|girl|guy|kid|child|lady|gentleman|teenager|teen|dude|fellow|character|human)", "person"],
    ["(he|she) has", "a person with"],
    ["((who|that) (has|have)|having)", "with"],
    ["(somebody|someone|he|she|they)", "a person"],
    ["(wears|sporting|sports|has on|dressed in)", "wearing"],
    ["(but|while|plus|also)", "and"],
    ["(under|beneath|over)", "with"],
    ["(who|that|is|has|have|looks|looking|the|his|her|their|really|big|huge|thick|large|slightly|of)", ""],
    ["in", "wearing"],
    ["(\\s*,)+\\s*", ", "],
]  # fmt: skip

FRAME = "a an face person portrait with wearing and , on background hair skin head brows hat glasses clothes"

LABELS = []  # all pairs (attribute, value)
VOCABULARY = set(FRAME.split())  # all words of captions
for attribute, values in ATTRIBUTES.items():
    LABELS += [(attribute, value) for value in values]
    VOCABULARY.update(
        " ".join(values).split(), *(" ".join(more).split() for more in SYNONYMS[attribute].values())
    )
VOCABULARY = sorted(VOCABULARY)


# Labels ---------------------------------------------------------------------------------


def attribute_faces(split="train", size=32):
    """The toy faces of a split, and the labels of each. Lesson 15.

    Returns `(faces, labels)`: (N, 3, size, size) in [0, 1], and (N, 12) numbers of LABELS from 1 on, one for
    each attribute. The colour of a hat that is not there has none: 0.
    """
    faces, classes = labelled_faces(split, size)
    rows = datasets.load_dataset(str(TOY_FACES), split=split)
    columns = []
    for name, values in ATTRIBUTES.items():
        numbers = classes[name] if name in classes else torch.tensor(rows[name][:])
        columns.append(1 + LABELS.index((name, values[0])) + numbers)
    labels = torch.stack(columns, dim=1)
    labels[classes["hat"] == 0, list(ATTRIBUTES).index("hat_color")] = 0
    return faces, labels


def face_labels(**attributes):
    """The labels (1, 12) of a face that is wanted, as in face_labels(hat="cap", hat_color="red"). Lesson 15.

    Raises KeyError for an attribute, ValueError for a value that does not exist.
    """
    numbers = dict.fromkeys(ATTRIBUTES, 0)
    for name, value in attributes.items():
        if value not in ATTRIBUTES[name]:
            raise ValueError(f"{name} cannot be {value!r}, only {', '.join(ATTRIBUTES[name])}")
        numbers[name] = 1 + LABELS.index((name, value))
    return torch.tensor([list(numbers.values())])


# Captions -------------------------------------------------------------------------------


def tidy(caption):
    """The caption without needless spaces, and with "an" before a vowel. Lesson 16."""
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(caption.split()))


def spoken(labels, dice, vague):
    """A word or more for each attribute, "" for those of which `labels` (12,) say nothing. Lesson 16."""
    is_vague = dice.random() < vague
    words = dict.fromkeys(ATTRIBUTES, "")
    for number in filter(None, labels.tolist()):
        attribute, value = LABELS[number - 1]
        names = [value, *SYNONYMS[attribute].get(value, [])]
        words[attribute] = VAGUE[value] if is_vague and value in VAGUE else dice.choice(names)
    return words


def features(words):
    """Phrases for what a face has, such as "blue hair". Lesson 16."""
    color, style = words["hair_color"], words["hair_style"]
    phrases = [f"{words['skin_tone']} skin"] if words["skin_tone"] else []
    phrases += [words[name] for name in ("beard", "glasses", "mouth") if words[name]]
    if style == "bald":
        return [*phrases, "a bald head", f"{color} brows"] if color else [*phrases, "a bald head"]
    if style in ("quiff", "bob", "afro", "bun", "braids"):
        return [*phrases, f"{'' if style == 'braids' else 'a'} {color} {style}"]
    return [*phrases, f"{style} {color} hair"] if style or color else phrases


def clothing(words):
    """Phrases for what a person wears, such as "a red cap". Lesson 16."""
    phrases = []
    if words["hat"] == "no hat":
        phrases.append("no hat")
    elif words["hat"] or words["hat_color"]:
        phrases.append(f"a {words['hat_color']} {words['hat'] or 'hat'}")
    if words["clothes"]:
        phrases.append(f"a {words['clothes_color']} {words['clothes']}")
    elif words["clothes_color"]:
        phrases.append(f"{words['clothes_color']} clothes")
    return phrases


def caption(labels, dice, vague=0.0):
    """A caption for `labels` (12,), in words and an order that `dice` choose. Lesson 16.

    `dice`: a random.Random. With a chance of `vague` a cap is just a hat, and round glasses are glasses.
    """
    words = spoken(labels, dice, vague)
    phrases = {"with": features(words), "wearing": [], "on": []}
    for phrase in clothing(words):
        phrases[dice.choice(("with", "wearing"))].append(phrase)
    dice.shuffle(phrases["with"])
    if words["background"]:
        phrases["on"].append(f"a {words['background']} background")
    if dice.random() < 0.3:  # a list, such as "blue hair, smiling, a red cap"
        parts = sum(phrases.values(), [words["smile"]])
        dice.shuffle(parts)
        return tidy(", ".join(filter(None, parts))) or "a face"
    groups = [f"{word} {dice.choice((' and ', ', ')).join(some)}" for word, some in phrases.items() if some]
    dice.shuffle(groups)
    noun = dice.choice(("face", "face", "person", "portrait"))
    return tidy(dice.choice((" ", ", ")).join([f"a {words['smile']} {noun}", *groups]))
