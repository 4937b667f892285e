// In Nodes 2.0 a node is at least as high as the page's classic look would draw it with all its inputs, also those that
// are folded away: RB-Guidance would be two thirds empty. Said here that they are folded, it is as high as what it shows.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "OmniPortrait.Advanced",
  nodeCreated(node) {
    if (!window.LiteGraph?.vueNodesMode || !node.comfyClass?.startsWith("OmniPortrait")) return;
    for (const widget of node.widgets ?? []) if (widget.options?.advanced) widget.advanced = true;
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
