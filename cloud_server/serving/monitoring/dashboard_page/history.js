// Rows that the server has kept, of one span and one task; only what is new is asked for.

const ROWS = { "5m": 300, "1h": 360, "1d": 720 };
const SECONDS = { "5m": 300, "1h": 3600, "1d": 86400 };

export class Past {
  constructor(span, task) {
    this.span = span;
    this.task = task;
    this.clear();
  }

  clear() {
    this.started = null; // of the process whose rows these are
    this.next = 0;
    this.ends = [];
    this.seconds = [];
    this.groups = { columns: {}, reasons: {}, schedules: {} };
  }

  get length() { return SECONDS[this.span]; }

  // Ask for newer rows. Rejects if the server does not answer.
  async load() {
    const asked = new URLSearchParams({ span: this.span, task: this.task, after: String(this.next) });
    const answer = await fetch(`history?${asked}`);
    if (!answer.ok) throw new Error(`history: ${answer.status}`);
    this.add(await answer.json());
  }

  add(rows) {
    const other = this.started !== null && rows.started !== this.started;
    if (other) this.clear(); // the server has restarted: the next time all its rows are asked for
    this.started = rows.started;
    if (other) return;
    const before = this.ends.length, more = rows.ends.length;
    this.next = rows.next;
    this.ends = this.ends.concat(rows.ends);
    this.seconds = this.seconds.concat(rows.seconds);
    for (const [group, mine] of Object.entries(this.groups)) {
      const theirs = rows[group] || {};
      for (const name of new Set([...Object.keys(mine), ...Object.keys(theirs)])) {
        const old = mine[name] || new Array(before).fill(null);
        mine[name] = old.concat(theirs[name] || new Array(more).fill(null));
      }
    }
    const surplus = this.ends.length - ROWS[this.span];
    if (surplus > 0) this.drop(surplus);
  }

  drop(count) {
    this.ends = this.ends.slice(count);
    this.seconds = this.seconds.slice(count);
    for (const mine of Object.values(this.groups)) {
      for (const [name, values] of Object.entries(mine)) {
        mine[name] = values.slice(count);
        if (mine[name].every((value) => !value) && mine !== this.groups.columns) delete mine[name];
      }
    }
  }

  column(name) { return this.groups.columns[name] || new Array(this.ends.length).fill(null); }
}
