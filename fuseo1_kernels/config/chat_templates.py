"""The chat templates that a config may name. Each renders as mergekit 0.1.5's of that name does, white space included.

That of exaone has indentation that EXAONE itself was not trained with, alpaca no line break before the last response,
and llama3 one after every turn; who wants another form gives the text of a template.
"""

_CHATML = """\
{% for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_LLAMA3 = """\
{% for message in messages -%}
{{ bos_token if loop.first }}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_MISTRAL = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' -%}
{{ bos_token }}
{%- for message in (messages[1:] if messages[0]['role'] == 'system' else messages) %}
{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}
{{- raise_exception('After a system message, user and assistant must take turns, the user first') }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}
{%- else %}
{{- ' [INST] ' + (system + '\\n\\n' if loop.first and messages[0]['role'] == 'system' else '') }}
{{- message['content'] + ' [/INST]' }}
{%- endif %}
{%- endfor %}"""

_ALPACA = """\
{%- set titles = {'user': 'Instruction', 'assistant': 'Response', 'user_context': 'Input'} -%}
{{ (messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | list | last | default('')) | trim }}
{{- '\\n\\n' }}
{%- for message in messages if message['role'] in titles %}
{{- '### ' + titles[message['role']] + ':\\n' + message['content'] | trim }}
{{- '\\n\\n' if message is not sameas messages[-1] }}
{%- endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '### Response:\\n' }}{% endif %}"""

_EXAONE = """\
{% for message in messages -%}
{{ '        [|system|][|endofturn|]\\n\\n' if loop.first and message['role'] != 'system' }}
{{- '    [|' + message['role'] + '|]' + message['content'] + '\\n        ' }}
{{- '\\n\\n' if message['role'] == 'user' else '[|endofturn|]\\n\\n' }}
{%- endfor -%}
{% if add_generation_prompt %}{{ '    [|assistant|]\\n' }}{% endif %}"""

#: Text by name.
CHAT_TEMPLATES = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}

#: The token that ends a turn, by name; mistral's and alpaca's turns end as a text does.
TURN_ENDS = {"chatml": "<|im_end|>", "exaone": "[|endofturn|]", "llama3": "<|eot_id|>"}
