# The commands of this project. Everything works as root on a fresh Debian 12 or 13; tests/setup installs what is needed.
#
#   make demo      see it work in a disposable machine (DEMO_ARGS='...')
#   make check     lint, types and all tests (PYTEST_ARGS='-k ...', WORKERS=2)
#   make check-pythons  the unit tests and the main job under the Python of other Debians (RELEASES='trixie sid')
#   make lint      the first part of it
#   make deb       dist/snap-upgrade_<version>_all.deb
#   make bench     measure (BENCH_ARGS='--json')
#   make mutants   break the code one change at a time and see that its tests turn red (MUTANTS_ARGS='-k storage')
#   make clean     remove what these made here (what is cached outside is left)

SHELL = /bin/bash
.SHELLFLAGS = -euo pipefail -c
.DEFAULT_GOAL = help
.PHONY: help demo check check-pythons lint deb bench mutants clean

help:
	@sed -n 's/^#   //p' Makefile

demo: deb
	tests/demo/run $(DEMO_ARGS)

deb:
	@tests/setup --packages
	$(MAKE) --no-print-directory dist/.built

# Built anew when anything that goes into it is newer, has appeared or is gone (a folder's time says that).
dist/.built: $(shell find plugin hooks packaging README.md CHANGELOG.md LICENSE -name __pycache__ -prune -o -print) Makefile
	packaging/build_deb.py dist
	touch dist/.built

lint:
	@python=$$(tests/setup)
	$(LINT)

# The system tests install the package. One pytest, so that there is one closing line; a skipped test fails it
# (tests/conftest.py). A mount namespace of its own, so that nothing is left mounted when it is killed.
check: deb
	@python=$$(tests/setup)
	$(LINT)
	unshare --mount "$$python" -m pytest $(if $(WORKERS),-n $(WORKERS)) $(PYTEST_ARGS)

# sid is as old as the mirror's copy of it: SNAP_UPGRADE_EXPIRED_LISTS=accept takes lists whose date is over.
RELEASES = trixie sid
check-pythons: deb
	@python=$$(tests/setup)
	SNAP_UPGRADE_PYTHONS="$(RELEASES)" unshare --mount "$$python" -m pytest tests/system/test_pythons.py $(PYTEST_ARGS)

bench: deb
	@python=$$(tests/setup)
	"$$python" -m tests.bench $(BENCH_ARGS)

# In copies of the tree; it takes some minutes for each section of tests/mutants.
mutants:
	@python=$$(tests/setup)
	"$$python" -m tests.mutants $(MUTANTS_ARGS)

clean:
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.ONESHELL:
define LINT
"$$python" -m ruff check
"$$python" -m ruff format --check
"$$python" -m mypy
endef
