"""Chat templates as tokenizers have them."""

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<s>system\nBe kind to Rome.</s>\n{% endif %}"
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# Of words that the tiny models of the shell know.
WORDS = (
    "the museum stands . {{ messages[0]['content'] }} . "
    "{% if messages | length > 1 %}it is . {{ messages[1]['content'] }}"
    "{% elif add_generation_prompt %}it is . {% endif %}"
)
# Short enough for models whose tokens are bytes.
SHORT = (
    "s: cd\nu: {{ messages[0]['content'] }}\n"
    "{% if messages | length > 1 %}a: {{ messages[1]['content'] }}{% elif add_generation_prompt %}a: {% endif %}"
)
