// Chat: a conversation with the model, streamed from /v1/chat/completions. What the model says is only ever set as text.

import * as format from './format.js';

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  while (true) {
    const {value, done} = await reader.read();
    if (done) return;
    const events = (rest + value).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith('data: ') && event !== 'data: [DONE]') yield JSON.parse(event.slice(6));
    }
  }
}

export class Chat {
  // headersOf: () -> headers with the API key; modelOf: () -> the model's name
  constructor({log, form, input, send, clear}, headersOf, modelOf) {
    Object.assign(this, {log, form, input, send, clear, headersOf, modelOf});
    this.messages = [];
    this.running = null;  // of the answer under way: its AbortController
    this.empty = log.firstElementChild;
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.ask(this.input.value.trim());
    });
    input.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) form.requestSubmit();
    });
    clear.addEventListener('click', () => this.reset());
  }

  reset() {
    if (this.running) this.running.abort();
    this.messages = [];
    this.log.replaceChildren(this.empty);
    this.clear.hidden = true;
  }

  show(who, text) {
    const part = (name, words) => {
      const node = document.createElement('div');
      node.className = name;
      node.textContent = words;
      return node;
    };
    const node = part('message', '');
    const words = part('words', text);
    const note = part('note', '');
    node.append(part('who', who), words, note);
    this.log.append(node);
    return {node, words, note};
  }

  async ask(text) {
    if (!text) return;
    this.input.value = '';
    this.empty.remove();
    this.clear.hidden = false;
    const messages = [...this.messages, {role: 'user', content: text}];
    this.show('You', text);
    const view = this.show(this.modelOf(), '');
    this.log.scrollTop = this.log.scrollHeight;
    const running = new AbortController();
    this.running = running;
    this.send.textContent = 'Stop';
    let answer = '';
    try {
      await this.stream(messages, running.signal, view, (piece) => {
        const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 40;
        answer += piece;
        view.words.textContent = answer;
        if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
      });
    } catch (error) {
      const isStopped = error.name === 'AbortError';
      view.note.textContent = isStopped ? 'stopped' : error.message;
      if (!isStopped) view.node.classList.add('failed');
    }
    if (this.running !== running) return;  // cleared meanwhile
    // What was said stays said; a question without an answer is forgotten.
    if (answer) this.messages = [...messages, {role: 'assistant', content: answer}];
    this.running = null;
    this.send.textContent = 'Send';
    this.log.scrollTop = this.log.scrollHeight;
  }

  async stream(messages, signal, view, onText) {
    const started = performance.now();
    const response = await fetch('/v1/chat/completions', {
      method: 'POST',
      signal,
      headers: {'Content-Type': 'application/json', ...this.headersOf()},
      body: JSON.stringify({model: this.modelOf(), messages, stream: true, stream_options: {include_usage: true}}),
    });
    if (!response.ok) {
      const body = await response.json().catch(() => null);
      throw new Error(body?.error?.message ?? `HTTP ${response.status}`);
    }
    let first = null;
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices[0]?.delta?.content;
      if (piece) {
        first ??= performance.now();
        onText(piece);
      }
      if (event.usage) view.note.textContent = this.summary(event.usage, started, first);
    }
  }

  summary(usage, started, first) {
    const parts = [format.integer(usage.completion_tokens) + ' tokens'];
    if (first !== null) parts.push(format.milliseconds(first - started) + ' to the first');
    const seconds = (performance.now() - (first ?? started)) / 1000;
    if (usage.completion_tokens > 1 && seconds > 0) {
      parts.push(format.integer((usage.completion_tokens - 1) / seconds) + ' tokens/s');
    }
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(format.integer(cached) + ' of the prompt cached');
    return parts.join(' · ');
  }
}
