# What people do with this project. `make` alone builds the command.

SWIFT ?= swift
PREFIX ?= /usr/local
DESTDIR ?=

# Static and at a fixed address: nothing is searched, and 90,000 addresses are not adjusted, before it starts (2.4 ms
# instead of 5.5).
RELEASE_FLAGS := -c release --static-swift-stdlib -Xswiftc -static-executable -Xlinker -no-pie
TORPOR := .build/release/torpor
MANUALS := man/torpor.1 man/torpor-checkpoint.1 man/torpor-restore.1 man/torpor-show.1 man/torpor-check.1
SOURCES = $(shell find Sources Tests -name '*.swift' -not -name '*.pb.swift') Package.swift

bindir := $(DESTDIR)$(PREFIX)/bin
datadir := $(DESTDIR)$(PREFIX)/share

.PHONY: all build demo test victims bench install uninstall messages format lint clean

all: build

# SwiftPM knows what has changed.
build:
	$(SWIFT) build $(RELEASE_FLAGS) --product torpor

# A program is saved, ended, and goes on: the story in a minute.
demo: build
	@Scripts/demo $(TORPOR)

victims:
	$(MAKE) -C Tests/Victims

# The tests drive the command as it is shipped.
test: build victims
	$(SWIFT) build --build-tests
	@SWIFT=$(SWIFT) Scripts/test $(CURDIR)/$(TORPOR)

# Times and sizes, beside CRIU where there is one ($$CRIU or in PATH).
bench: build
	Benchmarks/run --torpor $(TORPOR) $(BENCH)

# Builds only where nothing is built yet, so that `sudo make install` leaves no files of root's behind.
install:
	test -x $(TORPOR) || $(MAKE) build
	install -d $(bindir) $(datadir)/man/man1 $(datadir)/bash-completion/completions \
	  $(datadir)/zsh/site-functions $(datadir)/fish/vendor_completions.d
	install -s -m 755 $(TORPOR) $(bindir)/torpor
	install -m 644 $(MANUALS) $(datadir)/man/man1/
	$(TORPOR) --generate-completion-script bash > $(datadir)/bash-completion/completions/torpor
	$(TORPOR) --generate-completion-script zsh > $(datadir)/zsh/site-functions/_torpor
	$(TORPOR) --generate-completion-script fish > $(datadir)/fish/vendor_completions.d/torpor.fish

uninstall:
	rm -f $(bindir)/torpor $(MANUALS:man/%=$(datadir)/man/man1/%) \
	  $(datadir)/bash-completion/completions/torpor $(datadir)/zsh/site-functions/_torpor \
	  $(datadir)/fish/vendor_completions.d/torpor.fish

format:
	$(SWIFT) format --in-place --parallel $(SOURCES)

lint:
	$(SWIFT) format lint --strict --parallel $(SOURCES)

# After a change of the protobuf definitions; needs protoc, and protoc-gen-swift of swift-protobuf 1.39.0 in PATH.
MESSAGES := Sources/Images/Messages
messages:
	protoc --proto_path=$(MESSAGES) --swift_opt=Visibility=Public --swift_opt=FileNaming=DropPath \
	  --swift_out=$(MESSAGES) $(MESSAGES)/*.proto

clean:
	rm -rf .build
	$(MAKE) -C Tests/Victims clean
	rm -rf Benchmarks/victims/bin
