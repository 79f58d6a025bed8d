"""The enrolling half of the `whosthere` command."""

from indexer.cli.duplicates import gallery_duplicates
from indexer.cli.enroll import enroll
from indexer.cli.galleries import gallery_group
from indexer.cli.identities import identity_group
from indexer.cli.models import models_group
from indexer.cli.parquet import gallery_export, gallery_import
from indexer.cli.reembed import gallery_reembed

gallery_group.add_command(gallery_duplicates)
gallery_group.add_command(gallery_export)
gallery_group.add_command(gallery_import)
gallery_group.add_command(gallery_reembed)

__all__ = ["COMMANDS", "gallery_group"]

COMMANDS = (enroll, gallery_group, identity_group, models_group)
