// Events as they are recorded. `EventSource` cannot send a key, so the stream is read with fetch.

import { path, send } from "../api.js";

const AFTER_ERROR = 3000;

/**
 * Follows the events that a query selects, after the event `last`, until the returned function is called. After a lost
 * connection it continues behind the last event that arrived.
 * @param {{query: object, last: number, onevent: function, onstate: function}} options `onstate` gets true when
 *   connected, false when not.
 */
export function follow({ query, last, onevent, onstate }) {
  const ending = new AbortController();
  run();
  return () => ending.abort();

  async function run() {
    while (!ending.signal.aborted) {
      try {
        const answer = await send(path("events", "stream"), { query, headers: { "Last-Event-ID": String(last) }, signal: ending.signal });
        onstate(true);
        await read(answer);
      } catch (error) {
        if (ending.signal.aborted) return;
        onstate(false, error);
        await new Promise((resolve) => setTimeout(resolve, AFTER_ERROR));
      }
    }
  }

  async function read(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || ending.signal.aborted) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop(); // not complete yet
      for (const block of blocks) take(block);
    }
  }

  function take(block) {
    const fields = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
    const data = fields.filter(([name]) => name === "data").map(([, value]) => value);
    if (data.length === 0) return;
    const event = JSON.parse(data.join("\n"));
    if (event.id <= last) return;
    last = event.id;
    onevent(event);
  }
}
