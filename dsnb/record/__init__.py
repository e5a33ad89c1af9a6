"""What was run, from what: digests, products, results files and progress lines."""

from dsnb.record.classes import FEW_WORDS, SHOWS, data_class, hide_row, may_show, suppress
from dsnb.record.files import (
    HOME,
    code_digest,
    commit,
    digest,
    lock,
    locked,
    plain,
    progress,
    provenance,
    say,
    write_json,
    write_text,
    writing,
)  # fmt: skip
from dsnb.record.ledger import LEDGERS, add_row, find_row, is_stale, ledger_rows, row_key
from dsnb.record.products import MADE_BY, Product, begin, chain, file_digest, planned, require
from dsnb.record.results import (
    HEADLINE,
    STAGES,
    find_root,
    open_root,
    read_mark,
    read_results,
    write_results,
)  # fmt: skip
