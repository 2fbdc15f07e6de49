"""Licences: what people write, what files declare, and which expressions an allow-list admits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.block import documents, funnel
from lit_llm.corpus.filters.licensing import LicenseFilter, detect_license
from lit_llm.corpus.filters.spdx import GROUPS, UNRECOGNISED, normalize_license, permitted
from lit_llm.errors import UserError

WRITTEN = {
    "MIT License": "MIT",
    "The MIT License (MIT)": "MIT",
    "mit": "MIT",
    "Apache 2": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "http://www.apache.org/licenses/LICENSE-2.0.txt": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "Simplified BSD": "BSD-2-Clause",
    "GPLv3": "GPL-3.0-only",
    "GPL-3.0": "GPL-3.0-only",
    "GPLv2+": "GPL-2.0-or-later",
    "GNU General Public License v2.0 or later": "GPL-2.0-or-later",
    "GNU Lesser General Public License v2.1": "LGPL-2.1-only",
    "AGPL-3.0-or-later": "AGPL-3.0-or-later",
    "Mozilla Public License 2.0": "MPL-2.0",
    "CC BY-SA 4.0": "CC-BY-SA-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "https://creativecommons.org/licenses/by-sa/4.0/": "CC-BY-SA-4.0",
    "http://creativecommons.org/licenses/by-nc-nd/3.0/de/": "CC-BY-NC-ND-3.0",
    "Creative Commons Attribution-ShareAlike 4.0 International": "CC-BY-SA-4.0",
    "Creative Commons Attribution-NonCommercial 4.0 International Public License": "CC-BY-NC-4.0",
    "CC-BY-NC-SA": "LicenseRef-CC-BY-NC-SA",
    "CC0": "CC0-1.0",
    "https://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
    "https://creativecommons.org/publicdomain/mark/1.0/": "CC-PDM-1.0",
    "public domain": "LicenseRef-Public-Domain",
    "MIT OR Apache-2.0": "MIT OR Apache-2.0",
    "MIT/Apache-2.0": "MIT OR Apache-2.0",
    "(mit or apache 2.0) and BSD-3-Clause": "(MIT OR Apache-2.0) AND BSD-3-Clause",
    "GPL-2.0-or-later WITH Classpath-exception-2.0": "GPL-2.0-or-later WITH "
    "Classpath-exception-2.0",
    "Unlicense": "Unlicense",
    "CC-BY-4.0 AND GPL-3.0-only": "CC-BY-4.0 AND GPL-3.0-only",
    "CC BY 4.0 non-commercial": "CC-BY-NC-4.0",
    "CC BY 4.0 (non-commercial use only)": None,
    "CC-BY-4.0, no derivatives": "CC-BY-ND-4.0",
    "CC BY 4.0 or later": None,
    "Creative Commons Attribution 3.0 United States License": "CC-BY-3.0",
    "CC BY 3.0 DE": "CC-BY-3.0",
    "CC BY 3.0 England and Wales": "CC-BY-3.0",
    "CC-BY-SA-4.0 AND CC-BY-NC-4.0": "CC-BY-SA-4.0 AND CC-BY-NC-4.0",
    "CC BY 4.0 and CC BY-ND 4.0": "CC-BY-4.0 AND CC-BY-ND-4.0",
    "CC0 1.0": "CC0-1.0",
    "CC0 1.0 Universal": "CC0-1.0",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)": "CC-BY-NC-4.0",
    "ISC License (ISC)": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "CC BY 4.0, Apache 2.0": "CC-BY-4.0 AND Apache-2.0",
    "MIT OR Apache-2.0, GPL-3.0": "(MIT OR Apache-2.0) AND GPL-3.0-only",
    "MIT; BSD-3-Clause": "MIT AND BSD-3-Clause",
    "(MIT)AND(GPL-3.0-only)": "MIT AND GPL-3.0-only",
    "Apache-2.0 WITH Commons-Clause": None,
    "Apache-2.0 AND Commons Clause": "Apache-2.0 AND LicenseRef-Commons-Clause",
    "Business Source License 1.1": "BUSL-1.1",
    "SSPL-1.0": "SSPL-1.0",
    "MIT non-commercial": None,
    "all rights reserved": None,
    "proprietary": None,
    "": None,
    "MIT AND": None,
    "other": None,
    "GPL-9.0": None,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_what_people_write(written: str) -> None:
    assert normalize_license(written) == WRITTEN[written]


def test_every_identifier_is_itself() -> None:
    for identifier in set().union(*GROUPS.values()):
        assert normalize_license(identifier) == normalize_license(identifier.lower()) == identifier


@settings(deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*WRITTEN, "AND", "OR", "(", ")", "WITH"])).map(" ".join)
)
def test_any_string_gives_an_expression_or_none(written: str) -> None:
    expression = normalize_license(written)
    if expression is not None:
        assert normalize_license(expression) == expression
        assert permitted(expression, frozenset().union(*GROUPS.values()))
        assert not permitted(expression, frozenset())


def test_one_side_of_or_both_of_and() -> None:
    permissive = GROUPS["permissive"]
    assert permitted("GPL-3.0-only OR MIT", permissive)
    assert not permitted("GPL-3.0-only AND MIT", permissive)
    assert permitted("(GPL-3.0-only OR MIT) AND Apache-2.0 WITH LLVM-exception", permissive)
    assert not permitted("CC-BY-NC-4.0", permissive | GROUPS["copyleft"])


DECLARED = {
    "# SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note\nint x;": "GPL-2.0-only WITH "
    "Linux-syscall-note",
    "/* SPDX-License-Identifier: MIT */": "MIT",
    "<!-- SPDX-License-Identifier: CC-BY-4.0 -->": "CC-BY-4.0",
    '# Licensed under the Apache License, Version 2.0 (the "License");\n# you may not '
    "use": "Apache-2.0",
    " * Permission is hereby granted, free of charge, to any person\n * obtaining a copy of this "
    "software": "MIT",
    "// Redistribution and use in source and binary forms, with or without\n// "
    "modification": "BSD-2-Clause",
    "Redistribution and use in source and binary forms ... Neither the name of the copyright "
    "holder": "BSD-3-Clause",
    "# it under the terms of the GNU General Public License as published by\n# the Free Software "
    "Foundation, either "
    "version 3 of the License, or\n# (at your option) any later version.": "GPL-3.0-or-later",
    "GNU Lesser General Public License as published by the FSF; version 2.1 of the "
    "License.": "LGPL-2.1-only",
    "This Source Code Form is subject to the terms of the Mozilla Public License, v. "
    "2.0.": "MPL-2.0",
    "Text is at https://creativecommons.org/licenses/by-sa/3.0/ since": "CC-BY-SA-3.0",
    "Text: https://creativecommons.org/licenses/by/4.0/ images: "
    "https://creativecommons.org/licenses/by-nc/4.0/": "CC-BY-4.0 AND CC-BY-NC-4.0",
    "This work is licensed under CC BY-NC 4.0.": "CC-BY-NC-4.0",
    "This article is distributed under the terms of the Creative Commons Attribution 4.0 "
    "International License "
    "(http://creativecommons.org/licenses/by/4.0/), which permits unrestricted use": "CC-BY-4.0",
    "This file is licensed under CC BY 4.0 for non-commercial use.": UNRECOGNISED,
    "Linux is licensed under the GPL.": None,
    "def f(): ...": None,
    "SPDX-License-Identifier: Secret-Sauce": UNRECOGNISED,
    "# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: "
    "GPL-3.0-only\n": "MIT AND GPL-3.0-only",
    "// SPDX-License-Identifier: MIT\n// SPDX-License-Identifier: Secret\n": UNRECOGNISED,
    '"Commons Clause" License Condition v1.0\nLicensed under the Apache License, Version '
    "2.0": "Apache-2.0 AND LicenseRef-Commons-Clause",
    "Permission is hereby granted, free of charge, to any person obtaining a copy ... The "
    "Software shall be used for "
    "Good, not Evil.": "MIT AND JSON",
    "Permission is hereby granted, free of charge, to any person obtaining a copy for "
    "non-commercial use": UNRECOGNISED,
    "Mozilla Public License Version 2.0 ... 'Secondary License' means the GNU Affero General "
    "Public License, "
    "Version 3.0. Mozilla Public License, v. 2.0": "MPL-2.0",
    "Business Source License 1.1": "BUSL-1.1",
    "LLAMA 3 COMMUNITY LICENSE AGREEMENT": UNRECOGNISED,
    "Redistribution and use in source and binary forms. This file is also under the terms of the "
    "GNU General Public "
    "License version 2": "BSD-2-Clause AND GPL-2.0-only",
}


@pytest.mark.parametrize("text", DECLARED)
def test_what_files_declare(text: str) -> None:
    assert detect_license(text) == DECLARED[text]
    assert detect_license("x" * 5000 + text) is None


def test_column_then_text_then_source() -> None:
    table = documents(
        ["a", "/* SPDX-License-Identifier: MIT */", "c", "d", "e", "f"],
        license=["GPLv3", None, "cc by 4.0", None, "whatever", None],
        source=["code", "code", "web", "web", None, "wiki"],
    )
    sources = {"wiki": "CC BY-SA 4.0", "web": "public domain"}
    done = LicenseFilter(sources=sources)(table)
    assert done["license"].to_pylist() == [
        "GPL-3.0-only", "MIT", "CC-BY-4.0", "LicenseRef-Public-Domain", None, "CC-BY-SA-4.0",
    ]  # fmt: skip
    assert funnel(done) == {
        "license: CC-BY-SA-4.0": 1,
        "license: GPL-3.0-only": 1,
        "license: unknown": 1,
    }
    lenient = LicenseFilter(allow=("permissive", "copyleft"), sources=sources, keep_unknown=True)(
        table
    )
    assert lenient["dropped"].null_count == len(table)
    everywhere = LicenseFilter(allow=("CC0-1.0",), sources={"*": "CC0"}, detect=False)(
        documents(["a", "b"])
    )
    assert (
        everywhere["license"].to_pylist() == ["CC0-1.0"] * 2
        and everywhere["dropped"].null_count == 2
    )


def test_a_source_does_not_replace_a_licence_that_is_not_recognised() -> None:
    table = documents(
        ["a", "SPDX-License-Identifier: Secret-Sauce", "c", "d"],
        license=["Our own terms", None, "  ", None],
        source=["web"] * 4,
    )
    done = LicenseFilter(sources={"web": "MIT"})(table)
    assert done["license"].to_pylist() == [None, None, "MIT", "MIT"]
    assert funnel(done) == {"license: unknown": 2}


def test_mistakes_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"license\.allow: 'nice'"):
        LicenseFilter(allow=("nice",))
    with pytest.raises(UserError, match=r"license\.sources\.web: 'mine'"):
        LicenseFilter(sources={"web": "mine"})
