// Package tap writes the Test Anything Protocol, version 13.
//
// The suite imports github.com/mndrix/tap-go, which Debian does not have. This is a replacement with the
// names that the suite uses, and no more.
package tap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// T numbers the results of one run.
type T struct {
	// How many results there were, shared with the copies that Todo makes.
	count *int
	todo  bool
	out   io.Writer
}

// New writes to standard output.
func New() *T {
	return &T{count: new(int), out: os.Stdout}
}

// Header begins the output; a plan of 0 tests is told at the end by AutoPlan.
func (t *T) Header(tests int) {
	fmt.Fprintln(t.out, "TAP version 13")
	if tests > 0 {
		t.plan(tests)
	}
}

// AutoPlan says how many results there were.
func (t *T) AutoPlan() {
	t.plan(*t.count)
}

func (t *T) plan(tests int) {
	fmt.Fprintf(t.out, "1..%d\n", tests)
}

// Ok writes one result.
func (t *T) Ok(passed bool, description string) {
	word, directive := "ok", "-"
	if !passed {
		word = "not ok"
	}
	if t.todo {
		directive = "# TODO"
	}
	t.result(word, directive, description)
}

func (t *T) result(word, directive, description string) {
	*t.count++
	fmt.Fprintf(t.out, "%s %d %s %s\n", word, *t.count, directive, description)
}

// Pass is Ok with true.
func (t *T) Pass(description string) {
	t.Ok(true, description)
}

// Fail is Ok with false.
func (t *T) Fail(description string) {
	t.Ok(false, description)
}

// Skip writes results that were not looked for.
func (t *T) Skip(count int, description string) {
	for i := 0; i < count; i++ {
		t.result("ok", "# SKIP", description)
	}
}

// Todo gives a writer whose failures are expected.
func (t *T) Todo() *T {
	todo := *t
	todo.todo = true
	return &todo
}

// Diagnostic is a comment.
func (t *T) Diagnostic(message string) {
	fmt.Fprintf(t.out, "# %s\n", bytes.ReplaceAll([]byte(message), []byte("\n"), []byte("\n# ")))
}

// Diagnosticf is a comment with a format.
func (t *T) Diagnosticf(format string, arguments ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, arguments...))
}

// YAML writes what belongs to the last result; JSON is YAML.
func (t *T) YAML(message interface{}) error {
	text, err := json.MarshalIndent(message, "  ", "  ")
	if err == nil {
		fmt.Fprintf(t.out, "  ---\n  %s\n  ...\n", text)
	}
	return err
}
