"""The report of a lake as documents and as a page: rendering only; its figures are `datalake_assets.core.report`."""
