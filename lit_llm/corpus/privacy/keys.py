"""Recognizers of keys, tokens and passwords: by the prefix of a service, or by a name before them.

Prefixes and lengths are those that the services and scanners for leaked keys publish. A prefix
proposes a candidate, and an exact form confirms it. So a placeholder ("ghp_xxxx") and a name with
hyphens ("sk-learn-contrib") are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lit_llm.corpus.privacy.recognizers import Recognizer, as_it_is

# One pattern per line; `_token` checks them.
_CLASSIC = (
    r"""\b(?:AKIA|ASIA)[A-Z2-7]{16}\b
\bgh[pousr]_[A-Za-z0-9]{36}
\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}
\bxox[abcdeprs]-[0-9A-Za-z]{8}[0-9A-Za-z-]+
\bsk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{20}[A-Za-z0-9_-]+
\bAIza[A-Za-z0-9_-]{35}
\b[rs]k_(?:live|test)_[A-Za-z0-9]{24}[A-Za-z0-9]*
\bhf_[A-Za-z]{34}\b
\bnpm_[A-Za-z0-9]{36}\b
\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50}[A-Za-z0-9_-]*
\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}
\b[0-9]{8,10}:AA[A-Za-z0-9_-]{32}[A-Za-z0-9_-]*
\beyJ[A-Za-z0-9_-]{10}[A-Za-z0-9_-]*\.eyJ[A-Za-z0-9_-]{10}[A-Za-z0-9_-]*"""
    r"\.[A-Za-z0-9_-]{20}[A-Za-z0-9_-]*"
)

# The prefix of a key, and the exact form of the part after it. {w}: letters, digits, "_" and "-";
# {a}: letters and digits; {h}: hexadecimal digits.
_FORMS = {
    "sk-or-v1-": "{h}{64}",  # OpenRouter
    "sk-lf-": "{h}{8}-{h}{4}-{h}{4}-{h}{4}-{h}{12}",  # Langfuse
    "sk-": "{h}{32}(?![A-Za-z0-9_-])",  # DeepSeek
    "gsk_": "{a}{52}",  # Groq
    "r8_": "{a}{37}",  # Replicate
    "xai-": "{a}{80}",  # xAI
    "pplx-": "{a}{48}",  # Perplexity
    "csk-": "{a}{48}",  # Cerebras
    "tgp_v1_": "{w}{43,}",  # Together
    "nvapi-": "{w}{60,}",  # NVIDIA
    "tvly-": "{w}{32,}",  # Tavily
    "lsv2_pt_": "{h}{32}_{h}{10}",  # LangSmith
    "lsv2_sk_": "{h}{32}_{h}{10}",
    "api_org_": "[A-Za-z]{34}",  # Hugging Face, of an organization
    "rpa_": "[A-Z0-9]{40,}",  # RunPod
    "dop_v1_": "{h}{64}",  # DigitalOcean: personal, OAuth, refresh
    "doo_v1_": "{h}{64}",
    "dor_v1_": "{h}{64}",
    "dapi": r"{h}{32}(?:-\d)?",  # Databricks
    "hvs.": "{w}{24,}",  # Vault: service, batch, recovery
    "hvb.": "{w}{24,}",
    "hvr.": "{w}{24,}",
    "shpat_": "{h}{32}",  # Shopify: access, custom, private, shared secret
    "shpca_": "{h}{32}",
    "shppa_": "{h}{32}",
    "shpss_": "{h}{32}",
    "lin_api_": "{a}{40}",  # Linear
    "lin_oauth_": "{h}{64}",
    "xapp-": r"\d-{a}+-\d+-{a}{32,}",  # Slack, of an application
    "xoxe-": r"\d-{a}{100,}",  # Slack, refresh
    "xoxe.xoxb-": r"\d-{a}{100,}",  # Slack, rotated
    "xoxe.xoxp-": r"\d-{a}{100,}",
    # GitLab's routable form ends with a version and a checksum after full stops.
    "glpat-": r"(?:{w}{27,300}\.[0-9a-z]{2}\.?[0-9a-z]{7,9}|{w}{20})",
    "glrt-": r"(?:{w}{27,300}\.[0-9a-z]{2}\.?[0-9a-z]{7,9}|{w}{20})",
    "gldt-": "{w}{20}",
    "glptt-": "{w}{20,}",
    "glcbt-": "{w}{20,}",
    "glsoat-": "{w}{20}",
    "glft-": "{w}{20}",
    "glimt-": "{w}{25}",
    "glagent-": "{w}{50}",
    "gloas-": "{w}{64}",
    "dckr_pat_": "{w}{27}",  # Docker
    "dckr_oat_": "{w}{32}",
    "figd_": "{w}{38,}",  # Figma
    "ntn_": "{a}{43,}",  # Notion
    "GOCSPX-": "{w}{28}",  # Google, client secret
    "ya29.": "{w}{50,}",  # Google, access
    "sbp_": "{h}{40}",  # Supabase
    "glsa_": "{a}{32}_{h}{8}",  # Grafana
    "rubygems_": "{h}{48}",
    "whsec_": "[A-Za-z0-9+/]{32,}",  # Stripe and Standard Webhooks
    "sq0atp-": "{w}{22,}",  # Square
    "sq0csp-": "{w}{40,}",
    "NRAK-": "[A-Z0-9]{27}",  # New Relic
    "PMAK-": "{h}{24}-{h}{34}",  # Postman
    "pul-": "{h}{40}",  # Pulumi
    "pscale_tkn_": "[A-Za-z0-9_.=-]{32,}",  # PlanetScale
    "pscale_pw_": "[A-Za-z0-9_.=-]{32,}",
    "sntrys_": "[A-Za-z0-9+/=_-]{40,}",  # Sentry
    "sntryu_": "{h}{64}",
    "tskey-": "[a-z]+-{a}{8,}-{a}{20,}",  # Tailscale
    "AGE-SECRET-KEY-1": "[0-9A-Z]{58}",
    "ATATT3": "[A-Za-z0-9_=-]{100,}",  # Atlassian
    "HRKU-": "{w}{36,}",  # Heroku
    "xkeysib-": "{h}{64}-{a}{16}",  # Brevo
    "SK": "{h}{32}(?![0-9a-f])",  # Twilio
    "EAACEdEose0cBA": "{a}{20,}",  # Facebook
    "sk.eyJ": r"{w}{20,}\.{w}{20,}",  # Mapbox, secret
    "dp.pt.": "{a}{40,44}",  # Doppler
    "dp.st.": r"(?:[a-z0-9_-]+\.)?{a}{40,44}",
    "shippo_live_": "{h}{40}",
    "duffel_live_": "[A-Za-z0-9_=-]{43}",
    "EZAK": "{a}{54}",  # EasyPost
    "dt0c01.": r"[A-Z0-9]{24}\.[A-Z0-9]{64}",  # Dynatrace
    "rdme_": "[a-z0-9]{70}",  # ReadMe
    "CLOJARS_": "[a-z0-9]{60}",
    "1//0": "{w}{40,}",  # Google, refresh
    "key-": "{h}{32}(?![A-Za-z0-9_-])",  # Mailgun
}  # fmt: skip
_CLASSES = {"{w}": "[A-Za-z0-9_-]", "{a}": "[A-Za-z0-9]", "{h}": "[0-9a-f]"}


def _exact(form: str) -> str:
    """Replace the character classes in a form by regular expressions."""
    for name, characters in _CLASSES.items():
        form = form.replace(name, characters)
    return form


_BY_HEAD = re.compile("|".join(re.escape(head) + _exact(form) for head, form in _FORMS.items()))
_HEADS = "|".join(re.escape(head) for head in _FORMS)


def _headed(before: str, value: str, after: str) -> str:
    """A key in a service's form, but not one repeated character, and not words with hyphens."""
    found = _BY_HEAD.match(value + after)
    if not found or len(set(found[0][-16:])) < 5:
        return ""
    mixed = re.search(r"\d", found[0]) and re.search(r"\d[a-zA-Z]|[A-Z]", found[0])
    return found[0] if mixed else ""


def _token(before: str, value: str, after: str) -> str:
    """A token, but not a placeholder ("ghp_xxxxxxxx") or words with hyphens.

    An example of words with hyphens is "sk-something-long-and-telling".
    """
    body = (
        value[value.rfind("_" if value[2:4] in ("p_", "_l") else "-") + 1 :]
        if not value.startswith("eyJ")
        else value
    )
    if (len(set(body)) < 6 and len(set(value)) < 14) or value.endswith("EXAMPLE"):
        return ""
    if value.startswith("sk-") and not (re.search(r"\d", value) and re.search("[A-Z]", value)):
        return ""
    return value


def _password(before: str, value: str, after: str) -> str:
    """A password in a URL, but not a placeholder word, a variable, or the "b" of "a:b@"."""
    placeholder = re.fullmatch(
        r"(?i)(?:my|your)?[_-]?(?:pass(?:word|wd)?|pwd|pw|secret|token|x+|\*+)", value
    )
    variable = re.search(r"[<>{}$%\[\]():]|\.\.\.", value)
    return "" if placeholder or len(value) < 6 or variable else value


_PLACEHOLDER = re.compile(
    r"(?i)your|example|placeholder|x{6}|\.\.\.|(?:api|access|auth|my|some)[_-]"
)


def _credential(before: str, value: str, after: str) -> str:
    """A key behind a name: letters and digits mixed, ten different characters, no placeholder."""
    plain = value.rstrip("=")
    both_cases = plain != plain.lower() and plain != plain.upper()
    mixed = re.search(r"\d.*[A-Za-z].*\d" + r"|[A-Za-z]\d[A-Za-z]" * both_cases, plain)
    return value if mixed and len(set(plain)) >= 10 and not _PLACEHOLDER.search(value) else ""


def _base64(*lengths: range) -> Callable[[str, str, str], str]:
    """A check for a base64 key behind a name: it has one of these lengths, without counting "=".

    Refused are longer strings, examples from manuals and identifiers of programs.
    """

    def accept(before: str, value: str, after: str) -> str:
        fits = any(len(value.rstrip("=")) in length for length in lengths)
        example = "EXAMPLE" in value  # in Amazon's documentation
        identifier = not re.search("[0-9][A-Za-z+/]", value)  # a name in a program
        longer = re.match("[A-Za-z0-9+/]", after)
        return value if fits and not (example or identifier or longer) else ""

    return accept


_B64 = "[A-Za-z0-9+/]"
RECOGNIZERS = (
    Recognizer(
        "secret",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?s:.*?)-----END [A-Z0-9 ]*PRIVATE "
        r"KEY(?: BLOCK)?-----",
        as_it_is,
    ),
    # A private key block without its end.
    Recognizer(
        "secret",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:\s|\\n)*[A-Za-z0-9+/=\s\\]{32,}",
        as_it_is,
    ),
    Recognizer("secret", rf"\b(?:{_HEADS})[A-Za-z0-9_+/-]{{16}}[A-Za-z0-9_.=+/-]*", _headed),
    *(Recognizer("secret", pattern, _token) for pattern in _CLASSIC.splitlines()),
    Recognizer(
        "secret",
        rf"(?i)(?:aws_?secret_?(?:access_?)?|secret_?access_?)key\W{{1,5}}({_B64}{{40}})",
        _base64(range(40, 41)),
    ),
    Recognizer(
        "secret", rf"(?i)session_?token\W{{1,5}}({_B64}{{32}}{_B64}*=*)", _base64(range(100, 5000))
    ),
    # Azure: storage accounts and Cosmos; Service Bus and Event Hubs.
    Recognizer(
        "secret",
        rf"(?i)(?:account|shared_?access|storage)_?key\W{{1,5}}({_B64}{{40}}{_B64}*=*)",
        _base64(range(43, 44), range(86, 87)),
    ),
    Recognizer(
        "secret",
        r"\bhooks\.slack\.com/services/(T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{16}[A-Za-z0-9]*)",
        as_it_is,
    ),
    Recognizer(
        "secret",
        r"\bdiscord(?:app)?\.com/api/(?:v[0-9]+/)?webhooks/"
        r"([0-9]{17}[0-9]*/[A-Za-z0-9_-]{60}[A-Za-z0-9_-]*)",
        as_it_is,
    ),
    Recognizer(
        "secret",
        r"\boffice\.com/webhook(?:b2)?/"
        r"([0-9a-f-]{36}@[0-9a-f-]{36}/IncomingWebhook/[0-9a-f]{32}/[0-9a-f-]{36})",
        as_it_is,
    ),
    Recognizer("secret", r"\b[a-z][a-z0-9+.-]*://[^\s:/@]*:([^\s/@]+)@", _password),
    Recognizer(
        "secret",
        r"(?i)\b(?:authorization\W{1,8}(?:f\W)?(?:basic|token|apikey)|(?:f\W)?bearer)\s+"
        r"([A-Za-z0-9._~+/-]{16}[A-Za-z0-9._~+/-]*=*)",
        _credential,
    ),
    Recognizer("secret", r"(?i)\bvault_?token\W{1,4}(s\.[A-Za-z0-9]{24})\b", _credential),
    Recognizer("secret", r"\bsig=([A-Za-z0-9%]{40}[A-Za-z0-9%]*%3[Dd])", _credential),
    Recognizer("secret", r"\bpat[A-Za-z0-9]{14}\.[0-9a-f]{32}[0-9a-f]{32}\b", _credential),
    # A Discord token: an id, a time and a signature.
    Recognizer(
        "secret",
        r"\b[MNO][A-Za-z0-9]{23}[A-Za-z0-9]*\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}[A-Za-z0-9_-]*",
        _credential,
    ),
    # A key in the settings of any other service.
    Recognizer(
        "secret",
        r"(?i)(?:api|auth|access|secret)_?(?:access_?)?(?:key|token)[\"']?\s*[:=]\s*[\"']?"
        r"([A-Za-z0-9+/]{32}[A-Za-z0-9+/]*=*)",
        _credential,
    ),
    Recognizer(
        "secret",
        r"(?i)\b(?:x-)?(?:api-key|auth-token|subscription-key)\W{1,5}"
        r"([A-Za-z0-9_-]{20}[A-Za-z0-9_-]*)",
        _credential,
    ),
)
