"""Limits of repetition by language, from FineWeb-2 (arXiv:2506.20920), tuned on web pages.

They come from github.com/huggingface/fineweb-2, configs/, at commit d0defb2, for the languages that
are detected here and of which FineWeb-2 has a million documents or more. English, which FineWeb-2
does not have, and all other languages use Gopher's limits. So do six languages whose limits would
let most repetition pass (half of all lines, or 0.6 of all characters in one pair of words):
Afrikaans, Azerbaijani, Galician, Khmer, Nynorsk and Somali.
"""

from __future__ import annotations

import functools

# In thousandths: the share of lines that occur earlier; the shares of the document's characters in
# occurrences of the most frequent 2-, 3- and 4-gram of words; and the shares in 5- to 10-grams that
# occur earlier.
_TABLE = """
ar 304 197 172 146 165 153 142 131 120 109
be 261 196 153 135 124 116 103  94  84  75
bg 317 173 157 139 170 158 144 131 120 108
bn 203 177 158 147 118 108  99  90  82  73
bs 262 157 142 128 144 136 127 117 108  98
ca 294 216 189 168 159 149 137 126 116 105
cs 311 206 183 165 168 157 145 133 121 109
da 305 367 297 232 169 158 147 134 123 112
de 263 169 153 137 141 134 126 117 108  98
el 310 194 175 156 174 163 153 142 130 119
es 252 156 140 125 145 136 127 117 108  99
et 363 345 268 215 172 161 150 139 125 113
eu 298 263 227 192 152 140 129 118 108  96
fa 246 189 164 143 157 147 137 127 117 107
fi 293 253 202 179 153 143 133 122 112 101
fr 264 161 149 134 150 141 131 121 111 100
gu 299 204 178 151 132 122 113 102  94  84
he 340 239 202 173 160 151 140 129 118 108
hi 206 208 198 161 135 125 116 108  99  90
hr 312 215 190 165 173 162 150 138 126 113
hu 322 226 198 172 169 159 148 136 124 112
hy 285 225 206 184 157 146 133 123 111  99
id 241 194 166 145 166 155 144 133 122 111
is 292 210 183 163 157 150 143 126 114 104
it 246 198 156 133 144 136 127 118 109 100
ja 328 239 196 172 243 225 207 190 175 159
ka 332 225 189 167 157 146 134 122 111 100
kk 304 172 147 127 159 148 136 126 115 104
kn 250 214 183 165 135 126 118 110 101  93
ko 374 282 228 185 201 184 168 154 140 127
ky 311 247 189 161 167 160 136 125 119 111
la 452 150 147 140 457 449 436 420 400 378
lt 320 247 210 174 175 163 150 137 126 114
lv 329 526 337 242 173 160 148 135 122 109
mk 248 199 189 172 138 128 119 109  99  90
ml 239 191 180 164 138 132 125 116 108  99
mn 324 184 165 143 181 169 156 144 132 120
mr 233 156 150 137 145 138 131 122 114 105
ms 331 264 252 225 185 176 166 156 145 134
my 278 161 152 133 167 155 145 134 124 113
ne 155 114 103  91  98  90  83  76  69  62
nl 296 213 182 158 156 146 136 126 115 104
no 283 204 175 150 146 139 128 119 110  99
or 225 227 201 184 155 150 137 130 116 106
pl 320 222 198 176 172 160 148 136 123 111
pt 287 371 191 163 163 153 141 130 119 108
ro 289 161 146 131 160 149 138 127 117 106
ru 322 184 164 146 168 156 145 133 121 109
si 274 236 216 194 164 156 146 136 125 114
sk 319 316 218 171 176 165 152 140 127 115
sl 317 262 225 189 170 158 146 135 123 111
sq 241 152 136 116 131 122 113 105  96  87
sr 257 176 158 141 147 137 126 116 106  96
sv 292 242 195 174 156 147 136 125 116 105
sw 302 396 282 231 193 170 155 140 126 113
ta 276 230 212 190 149 140 132 123 114 104
te 256 210 180 162 142 133 122 114 105  96
th 349 221 197 162 185 168 152 137 124 111
tl 263 286 228 179 150 141 129 119 110 100
tr 272 214 168 147 154 144 134 124 113 103
uk 300 189 172 153 160 148 136 124 113 102
ur 204 139 123 107 125 115 107  98  89  81
uz 202 166 151 135 120 112 104  96  88  79
vi 293 223 197 171 178 163 150 136 124 111
zh 287 256 201 171 198 182 167 154 140 127
"""
# In scripts without spaces between words, a word stands for so many letters. Running text has about
# 1.6 letters per word in Chinese, 2 in Japanese, and, with their marks, 4 in Thai, Lao, Burmese and
# Khmer.
_LETTERS_A_WORD = {"zh": 2, "ja": 2, "th": 4, "lo": 4, "my": 4, "km": 4}


@functools.cache
def language_limits() -> dict[str, tuple[float, ...]]:
    """Return BCP 47 tag -> ten shares, in the order of the table."""
    rows = (line.split() for line in _TABLE.strip().splitlines())
    return {tag: tuple(int(value) / 1000 for value in values) for tag, *values in rows}


def limits_of(language: str | None) -> tuple[float, ...] | None:
    """Return a language's ten shares; None if it has no limits of its own.

    "zh-Hant" has those of "zh".
    """
    return language_limits().get(_primary(language))


def letters_a_word(language: str | None) -> int:
    """Return the letters per word in a script without spaces; 1 if spaces separate words."""
    return _LETTERS_A_WORD.get(_primary(language), 1)


def _primary(language: str | None) -> str:
    return (language or "").partition("-")[0]
