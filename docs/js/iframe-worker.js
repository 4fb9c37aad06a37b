/* Browsers start no worker on a page that was opened from a file. The search then runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      // What the script says goes to this window, and what this window says is the frame's own message.
      const address = new URL(url, location.href).href;
      frame.srcdoc =
        "<script>self.postMessage = (data) => parent.postMessage(data, '*'); self.importScripts = () => {};</" +
        `script><script src="${address}"></` + "script>";
      this.ready = new Promise((resolve) => frame.addEventListener("load", resolve));
      this.frame = frame;
      window.addEventListener("message", (event) => {
        if (event.source === frame.contentWindow) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      document.body.append(frame);
    }

    postMessage(data) {
      // This window's function, as the frame has another by that name.
      this.ready.then(() => window.postMessage.call(this.frame.contentWindow, data, "*"));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
